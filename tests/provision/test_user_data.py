"""The README's user-data, taken by Debian's cloud-init as on a machine's first boot."""

import subprocess
import sys

import pytest
from network import KNOCK, TOP, environment
from test_install import box                            # noqa: F401  a fixture
from test_readme_commands import CURL, blocks

MASTER = 'knock://ops:AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ@*?id=*&open=tcp/22\n'
# The stages of a boot, with those modules alone that user-data of ours has a say in.
STAGES = ('init --local', 'init', 'modules --mode config', 'modules --mode final')
BASE = '''datasource_list: [NoCloud]
datasource: {NoCloud: {seedfrom: "file://%(top)s/seed/"}}
network: {config: disabled}
def_log_file: %(top)s/log
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
system_info:
  distro: debian
  paths: {cloud_dir: %(top)s/state, run_dir: %(top)s/run, templates_dir: %(top)s}
'''


@pytest.fixture(scope='module')
def cloud_init(tmp_path_factory):
    """Debian's package, unpacked; returns what finds it, as an environment."""
    top = tmp_path_factory.mktemp('cloud-init')
    subprocess.check_call(['sh', '-c', 'apt-get -qq download cloud-init && '
                           'dpkg -x cloud-init_*.deb .'], cwd=str(top))
    for folder in ('seed', 'state', 'run'):
        (top / folder).mkdir()
    (top / 'base.cfg').write_text(BASE % {'top': top})
    (top / 'seed' / 'meta-data').write_text('instance-id: web1\n')
    return top, dict(environment(), CLOUD_CFG=str(top / 'base.cfg'), SHOP=TOP,
                     PYTHONPATH='%s/usr/lib/python3/dist-packages' % top)


def test_user_data_makes_a_server_at_its_first_boot(
        wire, box, cloud_init, tmp_path_factory):       # noqa: F811
    top, values = cloud_init
    address = wire.server.addresses[0]
    ours = dict(environment(), HOME=str(tmp_path_factory.mktemp('home')))

    def knock(*words, **options):
        done = wire.client.run('python3', KNOCK, *words, env=ours, **options)
        assert done.code == 0, done.err
        return done.out.strip()

    def cloud(words):
        done = box.run(sys.executable, '-m', 'cloudinit.cmd.main', *words.split(), env=values,
                       timeout=300)
        assert done.code == 0, done.out + done.err
        return done.out
    knock('save', 'fleet', stdin=MASTER)
    secret = knock('derive', 'fleet', 'web1', '--secret')
    user_data = top / 'seed' / 'user-data'
    user_data.write_text(blocks('I have many servers')[2].replace('SECRET', secret))
    assert 'Valid cloud-config' in cloud('schema --config-file %s' % user_data)
    box.must('sh', '-c', 'cat >/usr/local/bin/curl; chmod 755 /usr/local/bin/curl', stdin=CURL)
    with wire.server.listen(22):
        for stage in STAGES:
            cloud(stage)
        assert box.must('stat', '-c', '%a %U', '/etc/knockd/knockd.ini') == '600 root\n'
        assert not wire.client.connects(address, 22)
        knock('fleet@%s/web1' % address)
        assert wire.client.connects(address, 22) and not wire.stranger.connects(address, 22)
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
