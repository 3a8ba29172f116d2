"""The README's playbook, played by a real Ansible; a stranger cannot enter afterwards."""

import shutil
import sys

from network import KNOCK, KNOCKD, environment
from test_install import box                            # noqa: F401  a fixture
from test_readme_commands import blocks, program

MASTER = 'knock://ops:AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ@*?id=*&open=tcp/22\n'
PLAY = 'cd %s && %s -m ansible.cli.playbook -i hosts play.yml'


def test_the_playbook_makes_a_server_and_may_be_played_again(
        wire, box, tmp_path_factory):                   # noqa: F811
    address = wire.server.addresses[0]
    folder = tmp_path_factory.mktemp('controller')      # tmp_path is the box's
    (folder / 'bin').mkdir()
    program(folder / 'bin', 'knock.py', '#!/bin/sh\nexec python3 %s "$@"\n' % KNOCK)
    shutil.copy(KNOCKD, str(folder / 'knockd.py'))
    (folder / 'play.yml').write_text(blocks('I have many servers')[1])
    (folder / 'hosts').write_text('[web]\n%s ansible_connection=local '
                                   'ansible_python_interpreter=%s\n' % (address, sys.executable))
    values = environment()
    values.update(HOME=str(folder), PATH='%s:%s' % (folder / 'bin', values['PATH']),
                  ANSIBLE_NOCOLOR='1', ANSIBLE_LOCALHOST_WARNING='0')
    saved = wire.client.run('python3', KNOCK, 'save', 'fleet', stdin=MASTER, env=values)
    assert saved.code == 0, saved.err
    with wire.server.listen(22):
        for said in ('on probation', 'unchanged'):
            done = box.run('sh', '-c', (PLAY + ' -v') % (folder, sys.executable), env=values,
                           timeout=300)
            assert done.code == 0 and 'failed=0' in done.out, done.out + done.err
            assert said in done.out, done.out
        assert not wire.client.connects(address, 22)
        knocked = wire.client.run('python3', KNOCK, 'fleet@' + address, env=values)
        assert knocked.code == 0, knocked.err
        assert wire.client.connects(address, 22) and not wire.stranger.connects(address, 22)
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
