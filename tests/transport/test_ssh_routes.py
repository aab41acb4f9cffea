"""Jump hosts that are shared, logins that are dropped, and commands in a jump host's place."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from skyward.core.errors import HostUnreachable, LoginRefused, ProvisioningError
from skyward.core.spec import Endpoint
from skyward.transport import ssh_routes
from skyward.transport.ssh import SSHTransport
from tests.lab import Host, eventually
from tests.transport.test_ssh import endpoint, over, refusal


def together(places: list[Endpoint], timeout: float = 20) -> list[str]:
    """What each answers, connected to at the same time and all held until the last has answered."""

    async def main() -> list[str]:
        links = await asyncio.gather(*(SSHTransport().connect(place, timeout) for place in places))
        try:
            done = await asyncio.gather(*(link.shell.run("echo $SSH_CONNECTION") for link in links))
        finally:
            await asyncio.gather(*(link.close() for link in links))
        return [output.stdout.split()[0] for output in done]

    return asyncio.run(main())


def logins(host: Host) -> int:
    return host.console.count("Accepted publickey")


def connections(host: Host) -> list[str]:
    return [command for _, command in host.pids() if "sshd: root" in command]


# --- jump hosts ---


@pytest.mark.lab
def test_all_that_lies_behind_a_jump_host_shares_one_login_there(lab, lab_hosts, fresh_host):
    """Sixteen logins at a time are more than sshd's default lets in (10:30:100); this one lets in one."""
    targets = lab_hosts(2)
    bastion = fresh_host(sshd=("MaxStartups 2:100:2",))
    places = [endpoint(lab, target, jump=f"root@{bastion.address}") for target in targets for _ in range(8)]
    assert together(places) == [bastion.address] * 16
    assert logins(bastion) == 1
    eventually(lambda: not connections(bastion), what="the end of the connection that nobody uses")
    assert together(places[:2]) == [bastion.address] * 2
    assert logins(bastion) == 2, "the next ones have a new connection"


@pytest.mark.lab
@pytest.mark.parametrize("times", [1, 99])
def test_a_jump_host_that_is_lost_at_the_moment_of_a_login(lab, lab_hosts, fresh_host, monkeypatch, times):
    """The login is tried over a new connection; where each of them ends, the jump host is named and not the target."""
    (target,) = lab_hosts(1)
    bastion = fresh_host()
    place = endpoint(lab, target, jump=f"root@{bastion.address}")
    connect, losses = asyncssh.connect, iter(range(times))

    def lose_way(*args, tunnel=None, **kwargs):
        if tunnel is not None and next(losses, None) is not None:
            tunnel.abort()
        return connect(*args, tunnel=tunnel, **kwargs)

    monkeypatch.setattr(asyncssh, "connect", lose_way)
    if times == 1:
        assert together([place]) == [bastion.address]
    else:
        with pytest.raises(HostUnreachable, match=rf"jump host root@{bastion.address} keeps ending"):
            together([place])
    eventually(lambda: not connections(bastion), what="the end of the connection that nobody uses")


@pytest.mark.lab
def test_a_jump_host_that_is_lost_is_gone_through_anew(lab, lab_hosts, fresh_host):
    (target,) = lab_hosts(1)
    bastion = fresh_host()
    place = endpoint(lab, target, jump=f"root@{bastion.address}")

    async def main() -> None:
        first = await SSHTransport().connect(place, 10)
        for pid, command in bastion.pids():
            if "sshd: root" in command:
                bastion.run("kill", str(pid))
        second = await SSHTransport().connect(place, 10)
        assert (await second.shell.run("echo there")).stdout == "there\n"
        await first.close()
        assert (await second.shell.run("echo still")).stdout == "still\n", "the first did not have this one's"
        await second.close()

    asyncio.run(main())
    eventually(lambda: not connections(bastion), what="the end of both")


@pytest.mark.lab
def test_an_error_names_the_machine_that_failed(lab, lab_hosts, fresh_host):
    target, other = lab_hosts(2)
    nobody = lab.unused_address()
    text = refusal(endpoint(lab, target, jump=f"root@{nobody}"), HostUnreachable, timeout=1)
    assert text.startswith(f"the jump host root@{nobody} (on the way to root@{target.address}) did not answer")
    text = refusal(endpoint(lab, target, jump=f"root@{other.address}:2222"), HostUnreachable)
    assert text.startswith(f"root@{other.address}:2222 can't be reached: connection refused")
    assert text.endswith(f"This is the jump host on the way to root@{target.address}")
    text = refusal(endpoint(lab, target, jump=f"nobody-here@{other.address}"), LoginRefused)
    assert text.startswith(f"nobody-here@{other.address}:22 refused the login of 'nobody-here'")
    assert text.endswith(f"This is the jump host on the way to root@{target.address}")
    text = refusal(endpoint(lab, target, port=2222, jump=f"root@{other.address}"), HostUnreachable)
    assert text.startswith(f"root@{target.address}:2222 can't be reached from the jump host root@{other.address}")
    closed = fresh_host(sshd=("AllowTcpForwarding no",))
    text = refusal(endpoint(lab, target, jump=f"root@{closed.address}"), HostUnreachable)
    assert text.startswith(f"the jump host root@{closed.address} does not allow connections to root@{target.address}")
    assert "AllowTcpForwarding" in text


@pytest.mark.lab
def test_two_jump_hosts_that_wait_for_each_other_are_an_error_for_all(lab, lab_hosts, tmp_path):
    """Each login begins at another end of the circle."""
    first, second = lab_hosts(2)
    config = tmp_path / "config"
    config.write_text(
        f"Host a\n  HostName {first.address}\n  ProxyJump b\nHost b\n  HostName {second.address}\n  ProxyJump a\n"
        "Host *\n  User root\n"
    )
    places = [endpoint(lab, name, user=None, config=str(config)) for name in ("a", "b")]

    async def main() -> list[object]:
        tries = (SSHTransport().connect(place, 20) for place in places)
        return list(await asyncio.gather(*tries, return_exceptions=True))

    for error in asyncio.run(asyncio.wait_for(main(), 15)):
        assert isinstance(error, ProvisioningError)
        assert "circle" in str(error) or "jumphost loop" in str(error)


# --- hosts that drop connections ---


@pytest.mark.lab
def test_what_was_dropped_before_the_login_is_tried_again(lab, fresh_host):
    host = fresh_host(sshd=("MaxStartups 1:100:1",))
    assert together([endpoint(lab, host)] * 12) == [lab.gateway] * 12
    assert "past MaxStartups" in host.console or "drop connection" in host.console


@pytest.fixture
def dropper() -> Iterator[tuple[int, list[int]]]:
    """A port where connections are taken and ended at once; and how often that was."""
    import threading

    count = [0]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    taken, _ = server.accept()
                except OSError:
                    return
                count[0] += 1
                taken.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], count
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_host_that_drops_for_ever_is_given_up_and_the_error_says_why(dropper, monkeypatch):
    monkeypatch.setattr(ssh_routes, "_PAUSE", 0.001)
    port, count = dropper
    text = refusal(Endpoint("ssh", "127.0.0.1", port, "root", {"config": [], "known_hosts": []}), HostUnreachable)
    assert "MaxStartups" in text
    assert count[0] == 9


def test_pauses_grow_and_end():
    pauses = list(ssh_routes._pauses(9))
    assert pauses[-1] is None
    waits = [pause for pause in pauses if pause is not None]
    assert all(0.5 * min(0.25 * 2**n, 6) <= wait <= 1.5 * min(0.25 * 2**n, 6) for n, wait in enumerate(waits))


# --- ProxyCommand ---


def configured(tmp_path: Path, command: str) -> str:
    config = tmp_path / "config"
    config.write_text(f"Host *\n  ProxyCommand {command}\n")
    return str(config)


@pytest.mark.lab
def test_a_proxy_command_is_the_way_and_ends_with_the_connection(lab, lab_hosts, tmp_path):
    target, bastion = lab_hosts(2)
    ssh = f"ssh -F none -i {lab.key} -o UserKnownHostsFile={lab.known_hosts}"
    command = f"echo $$ >{tmp_path}/pid; echo noise >&2; exec {ssh} -W [%h]:%p root@{bastion.address}"
    script = tmp_path / "go"
    script.write_text(f"#!/bin/sh\n{command.replace('%h', '$1').replace('%p', '$2')}\n")
    script.chmod(0o700)
    place = endpoint(lab, target, config=configured(tmp_path, f"{script} %h %p"))
    (done,) = over(place, "echo $SSH_CONNECTION; head -c 3000000 /dev/zero | wc -c")
    assert done.stdout.split()[0] == bastion.address
    assert done.stdout.splitlines()[1] == "3000000"
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the command")


@pytest.mark.slow
def test_a_proxy_command_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_routes, "_PAUSE", 0.001)
    config = configured(tmp_path, "echo no way to %h >&2; exit 3")
    place = Endpoint("ssh", "box.invalid", None, "root", {"config": config, "known_hosts": []})
    text = refusal(place, HostUnreachable)
    assert "ended before the login; it printed: no way to box.invalid" in text
    config = configured(tmp_path, "nc %q")
    assert "%q" in refusal(place, LoginRefused)
