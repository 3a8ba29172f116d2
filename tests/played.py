"""A daemon in this process, without sockets and firewall: what it hears from the network and what
the firewall does is played."""

import knockd


class Deaf:
    """Plays packet sockets; remembers what the filter was asked to let by."""

    def __init__(self, limit):
        self.taps, self.loads = [], []

    def load(self, tags, program):
        self.loads.append(set(tags))

    def attach(self, shares, program):
        self.loads.append(set())

    def frames(self, sock):
        return knockd.receive(sock)

    def drops(self):
        return 0


class Keeper:
    """Plays the firewall: what is wanted is in force at once, unless it fails or is slow."""
    reflecting = True

    def __init__(self, tool=knockd.NFT):
        self.tool, self.calls, self.done, self.fails, self.slow = tool, [], [], None, False
        self.number, self.opened = 0, []

    def want(self, config, openings):
        self.number += 1
        self.config, self.opened = config, list(openings)
        self.calls.append('open ' + ' '.join(sorted(
            '%s/%s' % (each.source, knockd.format_service(each.service)) for each in openings)))
        error = self.fails and knockd.KnockError(self.fails)
        if not self.slow:
            self.done.append(knockd.Done(self.number, error, False, None))
        return self.number

    def look(self, now):
        self.calls.append('look')

    def turn(self, now, path):
        pass

    def results(self):
        done, self.done = self.done, []
        return done


def furnished(monkeypatch, config, state, now, keeper=None):
    """Such a daemon, at the point where it would begin to wait."""
    monkeypatch.setattr(knockd, 'Capture', Deaf)
    monkeypatch.setattr(knockd, 'status_socket', lambda config: None)
    monkeypatch.setattr(knockd, 'changes_silently', lambda tool: False)
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: '/nowhere')
    made = knockd.Daemon(config)
    made.furnish(state, keeper or Keeper(), now)
    made.settle_all(now)
    return made


def heard(daemon, packet, now, interface='eth0'):
    """It judges a packet, and the keeper has its turn."""
    daemon.handle(packet, interface, now)
    daemon.settle_all(now)
