"""Debian's cloud-init in a host: keys, files, commands and scripts arrive as on a rented machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Host, eventually
from tests.lab.fixtures import FreshHost

from .cloud_init import change_host_key, run_cloud_init
from .login import Login

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("cloud_init")]


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def fresh(fresh_host: FreshHost, user: str = "root") -> Host:
    host = fresh_host(system_python=True, authorized=False, users=() if user == "root" else (user,))
    host.cut()
    return host


def test_sent_keys_are_in_force_at_the_first_connection(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)
    assert run_cloud_init(host, login.user_data(), default_user="root", hostname="web-1") == []
    done = login.ssh(host.address, "hostname; echo $HOME")
    assert done.stdout.split() == ["web-1", "/root"], done.stderr
    keys = [path.name for path in (host.root / "etc/ssh").glob("ssh_host_*")]
    assert sorted(keys) == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]  # none of the image's own


def test_the_default_user_has_a_home_and_sudo_and_root_is_kept_out(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host, "ubuntu")
    assert run_cloud_init(host, login.user_data(), default_user="ubuntu") == []
    done = login.ssh(host.address, "touch file && pwd && sudo id -u", user="ubuntu")
    assert done.stdout.split() == ["/home/ubuntu", "0"], done.stderr
    # All that root gets is this sentence, and ten seconds to read it.
    roots = (host.root / "root/.ssh/authorized_keys").read_text()
    assert roots.startswith("no-port-forwarding,")
    assert 'Please login as the user \\"ubuntu\\" rather than' in roots


def test_keys_of_the_metadata_let_the_default_user_in(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)
    assert run_cloud_init(host, "", default_user="root", public_keys=[login.public_key]) == []
    login.host_key.with_suffix(".pub").write_text(host.public_key)  # it made one of its own
    assert login.gets_in(host.address)


def test_commands_and_files_of_a_cloud_config(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)
    data = login.user_data(
        bootcmd=["echo boot >> /order"],
        write_files=[{"path": "/srv/deep/file", "content": "text\n", "permissions": "0640", "owner": "root:daemon"}],
        runcmd=["echo run >> /order", ["sh", "-c", "id -u >> /order"], "sleep 1000 &"],  # holds nobody up
    )
    assert run_cloud_init(host, data, default_user="root") == []
    assert (host.root / "order").read_text().split() == ["boot", "run", "0"]
    assert host.run("stat", "-c", "%a %G", "/srv/deep/file").stdout.split() == ["640", "daemon"]
    assert any(command == "sleep 1000" for _, command in host.pids())


def test_a_machine_can_be_logged_into_before_its_commands_run(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)
    seen = []

    def ready(machine: Host) -> None:
        machine.mend()
        seen.append((login.gets_in(machine.address), (machine.root / "ran").exists()))

    run_cloud_init(host, login.user_data(runcmd=["touch /ran"]), default_user="root", ready=ready)
    assert seen == [(True, False)]
    assert (host.root / "ran").exists()


def test_a_script_is_run_as_it_is(fresh_host: FreshHost):
    host = fresh(fresh_host)
    assert run_cloud_init(host, "#!/usr/bin/env python3\nopen('/made', 'w').write('x')\n", default_user="root") == []
    assert (host.root / "made").read_text() == "x"


def test_a_failing_script_is_noted_and_the_machine_comes_up(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)
    errors = run_cloud_init(host, login.user_data(runcmd=["exit 3"]), default_user="root")
    assert len(errors) == 1
    assert "scripts-user" in errors[0] or "scripts_user" in errors[0]
    assert login.gets_in(host.address)


def test_an_impostor_is_not_believed(fresh_host: FreshHost, login: Login):
    host = fresh(fresh_host)

    def ready(machine: Host) -> None:
        change_host_key(machine)
        machine.mend()

    run_cloud_init(host, login.user_data(), default_user="root", ready=ready)
    refused = eventually(lambda: login.ssh(host.address, "true"), what="an answer")
    assert refused.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr


def test_a_machine_hides_the_system_python_unless_asked(fresh_host: FreshHost):
    with_python, without = fresh_host(system_python=True, pythons=()), fresh_host(pythons=())
    assert with_python.run("sh", "-c", "command -v python3").stdout.strip() == "/usr/bin/python3"
    assert not without.run("sh", "-c", "command -v python3").stdout
