# Plays OpenWrt's /lib/functions/procd.sh: what an init script says of its service goes to
# /sbin/procd, one word a line, not by ubus.
procd_open_service() {
	mkdir -p "/tmp/procd/$1"
	procd_place=/tmp/procd/$1
	rm -f "$procd_place"/new.*
}
procd_close_service() { [ ! -e "$procd_place/new.command" ] || /sbin/procd set "${procd_place##*/}"; }
procd_open_instance() { :; }
procd_close_instance() { :; }
procd_set_param() {
	procd_key=$1
	shift
	printf '%s\n' "$@" >"$procd_place/new.$procd_key"
}
procd_kill() { /sbin/procd delete "$1"; }
procd_send_signal() { /sbin/procd signal "$1" "${3:-HUP}"; }
