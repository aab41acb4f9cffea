"""The SSH transport against real sshd hosts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward.testing.service
from skyward.core.errors import HostKeyError, HostUnreachable, LinkError, LoginRefused, ProvisioningError
from skyward.core.interfaces import CommandOutput
from skyward.core.spec import Endpoint
from skyward.testing.transport import Place, TransportConformance
from skyward.transport.ssh import SSHLink, SSHTransport
from tests.lab import Host, Lab, eventually

pytestmark = pytest.mark.lab

STRANGER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHyAHcR9CfJmLyfOvvGFt3mVpcF5hRoqOFtqzO2VfSRN"


def endpoint(lab: Lab, host: Host | str, *, user: str | None = "root", port: int | None = None, **options) -> Endpoint:
    """A host of the lab; this machine's own ssh configuration stays out of it unless a test says otherwise."""
    usual = {"keys": [str(lab.key)], "known_hosts": str(lab.known_hosts), "config": []}
    options = {name: value for name, value in {**usual, **options}.items() if value is not None}
    return Endpoint("ssh", host if isinstance(host, str) else host.address, port, user, options)


def over(place: Endpoint, *commands: str, timeout: float = 10) -> list[CommandOutput]:
    """Connect and run commands."""

    async def main() -> list[CommandOutput]:
        link = await SSHTransport().connect(place, timeout)
        try:
            return [await link.shell.run(command) for command in commands]
        finally:
            await link.close()

    return asyncio.run(main())


def refusal(place: Endpoint, kind: type[ProvisioningError], timeout: float = 10) -> str:
    """The message with which a login fails."""
    with pytest.raises(ProvisioningError) as caught:
        over(place, "true", timeout=timeout)
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


def _listens(path: Path) -> bool:
    """Whether somebody accepts connections there: the file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture(scope="module")
def service(lab_hosts) -> Iterator[tuple[Host, str]]:
    (host,) = lab_hosts(1)
    source = Path(skyward.testing.service.__file__).read_text()
    (host.root / "opt/service.py").write_text(source)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    started = host.run("sh", "-c", f"{python} /opt/service.py /opt/service.sock >/dev/null 2>&1 & echo $!")
    eventually(lambda: _listens(host.root / "opt/service.sock"), what="the service")
    yield host, "/opt/service.sock"
    host.run("kill", started.stdout.strip())


class TestSuite(TransportConformance):
    """What every transport must do."""

    @pytest.fixture(autouse=True)
    def _place(self, lab, service):
        self.lab = lab
        self.host, self.address = service

    def transport(self):
        return SSHTransport()

    @contextlib.asynccontextmanager
    async def place(self):
        yield Place(
            endpoint(self.lab, self.host),
            self.address,
            nobody="/opt/nobody.sock",
            silent=endpoint(self.lab, self.lab.unused_address()),
            closed=endpoint(self.lab, self.host, port=2222),
        )


# --- host keys ---


def test_an_unknown_host_key_is_refused_and_the_error_says_how_to_add_it(lab, lab_hosts):
    (host,) = lab_hosts(1)
    text = refusal(endpoint(lab, host, known_hosts=[]), HostKeyError)
    assert host.address in text
    assert "SHA256:" in text
    assert f"ssh-keyscan {host.address}" in text


@pytest.mark.parametrize("how", ["missing file", "configuration says none", "configuration is silent", "no entry"])
def test_nothing_turns_the_check_of_host_keys_off(lab, lab_hosts, tmp_path, monkeypatch, how):
    (host,) = lab_hosts(1)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "config"
    config.write_text("UserKnownHostsFile none\nStrictHostKeyChecking no\n" if "none" in how else "")
    options = {"known_hosts": None, "config": str(config)}
    if how == "missing file":
        options["known_hosts"] = str(tmp_path / "nothing")
    if how == "no entry":
        options["known_hosts"] = [f"other.example {host.public_key}", "# comment", "nonsense", "a b c"]
    refusal(endpoint(lab, host, **options), HostKeyError)


def test_a_changed_host_key_is_refused_as_a_possible_attack(lab, fresh_host):
    host = fresh_host()
    over(endpoint(lab, host), "true")
    old, new = host.recorded_key, host.rekey() or host.public_key
    assert old != new
    text = refusal(endpoint(lab, host), HostKeyError)
    line = 1 + [line.split()[0] for line in lab.known_hosts.read_text().splitlines()].index(host.address)
    assert "intercepting" in text
    assert f"{lab.known_hosts} line {line}" in text
    assert f"ssh-keygen -R {host.address} -f {lab.known_hosts}" in text


def test_a_host_with_a_key_of_another_kind_than_the_known_is_a_changed_key(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(key)], check=True)
    entry = f"{host.address} {key.with_suffix('.pub').read_text()}"
    assert "intercepting" in refusal(endpoint(lab, host, known_hosts=[entry]), HostKeyError)


def test_a_revoked_host_key_is_refused(lab, lab_hosts):
    (host,) = lab_hosts(1)
    lines = [f"{host.address} {host.public_key}", f"@revoked * {host.public_key}"]
    refusal(endpoint(lab, host, known_hosts=lines), HostKeyError)


def test_known_hosts_may_be_lines_hashed_or_a_pinned_key(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    hashed = tmp_path / "hashed"
    hashed.write_text(f"{host.address} {host.public_key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True, capture_output=True)
    for options in (
        {"known_hosts": [f"{host.address} {host.public_key}"]},
        {"known_hosts": str(hashed)},
        {"known_hosts": None, "host_key": host.public_key},
    ):
        over(endpoint(lab, host, **options), "true")
    text = refusal(endpoint(lab, host, known_hosts=None, host_key=STRANGER), HostKeyError)
    assert "pinned" in text


# --- logins ---


def test_a_refused_login_names_the_user_and_the_keys(lab, fresh_host):
    host = fresh_host(authorized=False)
    text = refusal(endpoint(lab, host), LoginRefused)
    assert "'root'" in text
    assert str(lab.key) in text
    assert "authorized_keys" in text
    text = refusal(endpoint(lab, host, user="nobody-here"), LoginRefused)
    assert "'nobody-here'" in text


def test_a_missing_or_encrypted_key_is_named(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    assert "/no/such/key" in refusal(endpoint(lab, host, keys=["/no/such/key"]), LoginRefused)
    secret = tmp_path / "secret"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", str(secret)], check=True)
    text = refusal(endpoint(lab, host, keys=[str(secret)]), LoginRefused)
    assert f"ssh-add {secret}" in text


@pytest.fixture
def agent(lab, tmp_path, monkeypatch) -> Iterator[str]:
    """A private ssh-agent that holds the lab's key."""
    path = str(tmp_path / "agent.sock")
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL) as process:
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            eventually(lambda: Path(path).exists(), what="ssh-agent")
            subprocess.run(["ssh-add", "-q", str(lab.key)], check=True)
            yield path
        finally:
            process.terminate()


@pytest.mark.usefixtures("agent")
def test_the_keys_of_ssh_agent_are_used_and_may_be_forwarded(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    (done,) = over(endpoint(lab, host, keys=None), "echo agent=$SSH_AUTH_SOCK")
    assert done.stdout == "agent=\n"
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    (done,) = over(endpoint(lab, host, keys=[str(other)], agent_forwarding=True), "ssh-add -l")
    assert done.status == 0
    assert "lab-client" in done.stdout


@pytest.mark.usefixtures("agent")
def test_a_refusal_names_the_keys_of_ssh_agent(lab, fresh_host):
    host = fresh_host(authorized=False)
    assert "ssh-agent's 1 keys (lab-client)" in refusal(endpoint(lab, host, keys=None), LoginRefused)


# --- configuration and jump hosts ---


def test_aliases_of_the_configuration_are_honoured(lab, fresh_host, tmp_path):
    host = fresh_host(users=("ann",))
    config = tmp_path / "config"
    config.write_text(
        f"Host box\n  HostName {host.address}\n  User ann\n  IdentityFile {lab.key}\n  IdentityFile /no/such/file\n"
        f"  UserKnownHostsFile {lab.known_hosts}\n"
    )
    place = Endpoint("ssh", "box", None, None, {"config": str(config)})
    assert over(place, "whoami")[0].stdout == "ann\n"
    config.write_text("Host *\n  Port many\n")
    assert "config line 2: Bad port" in refusal(place, LoginRefused)


def test_jump_hosts_are_gone_through_and_their_keys_checked_too(lab, lab_hosts, fresh_host, tmp_path):
    first, second = lab_hosts(2)
    target = fresh_host(users=("ann",))
    jump = f"root@{first.address},{second.address}:22"
    (done,) = over(endpoint(lab, target, user="ann", jump=jump), "echo $SSH_CONNECTION")
    assert done.stdout.split()[0] == second.address
    config = tmp_path / "config"
    config.write_text(f"Host {target.address}\n  ProxyJump {first.address}\nHost *\n  User root\n")
    (done,) = over(endpoint(lab, target, user=None, config=str(config)), "echo $SSH_CONNECTION")
    assert done.stdout.split()[0] == first.address
    (done,) = over(endpoint(lab, target, jump="none", config=str(config)), "echo $SSH_CONNECTION")
    assert done.stdout.split()[0] == lab.gateway
    only_target = [f"{target.address} {target.public_key}"]
    text = refusal(endpoint(lab, target, config=str(config), known_hosts=only_target), HostKeyError)
    assert first.address in text
    nobody = lab.unused_address()
    assert nobody in refusal(endpoint(lab, nobody, jump=first.address), HostUnreachable, timeout=1)


def test_jump_hosts_that_lead_in_a_circle_are_an_error(lab, lab_hosts, tmp_path):
    first, second = lab_hosts(2)
    config = tmp_path / "config"
    config.write_text(
        f"Host {first.address}\n  ProxyJump {second.address}\nHost {second.address}\n  ProxyJump {first.address}\n"
    )
    assert "circle" in refusal(endpoint(lab, first, config=str(config)), HostUnreachable)
    config.write_text(f"Host *\n  ProxyJump {first.address}\n")  # which can't mean itself
    over(endpoint(lab, second, config=str(config)), "true")


# --- unreachable, and lines that break ---


def test_a_name_that_nobody_knows_is_unreachable(lab):
    assert "no.such.host.invalid" in refusal(endpoint(lab, "no.such.host.invalid"), HostUnreachable)


def test_a_cut_line_ends_channels_by_keepalive(lab, fresh_host, monkeypatch):
    host = fresh_host()
    monkeypatch.setattr("skyward.transport.ssh_login._KEEPALIVE", 0.2)

    async def main() -> None:
        link = await SSHTransport().connect(endpoint(lab, host), 10)
        running = asyncio.create_task(link.shell.run("sleep 70"))
        await link.shell.run("true")
        host.cut()
        with pytest.raises(LinkError):
            await running
        begin = time.monotonic()
        await link.close()
        assert time.monotonic() - begin < 8

    asyncio.run(asyncio.wait_for(main(), 20))


def test_closing_a_link_over_a_dead_line_does_not_wait_for_it(lab, fresh_host):
    host = fresh_host()

    async def main() -> None:
        link = await SSHTransport().connect(endpoint(lab, host), 10)
        host.cut()
        begin = time.monotonic()
        await link.close()
        assert time.monotonic() - begin < 8

    asyncio.run(main())


def test_a_cancelled_connect_leaves_no_connection(lab, lab_hosts):
    (host,) = lab_hosts(1)

    async def main() -> None:
        for delay in (0, 0.005, 0.02):
            connecting = asyncio.create_task(SSHTransport().connect(endpoint(lab, host), 10))
            await asyncio.sleep(delay)
            connecting.cancel()
            for link in await asyncio.gather(connecting, return_exceptions=True):
                if isinstance(link, SSHLink):
                    await link.close()

    asyncio.run(main())
    eventually(lambda: not [line for _, line in host.pids() if "sshd: root" in line], what="the end of all logins")


# --- login shells ---


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/dash", "/bin/sh"])
def test_login_shells_and_what_they_print_do_not_matter(lab, fresh_host, shell):
    noise = "echo hello; echo '<noise>' >&2; printf 'no newline'; cat /etc/passwd; printf '\\0\\377\\n'"
    host = fresh_host(shell=shell, bashrc=noise, users=("ann",))
    for user in ("root", "ann"):
        done = over(endpoint(lab, host, user=user), "echo out; echo err >&2; whoami; exit 5", "cat")
        assert done == [CommandOutput(5, f"out\n{user}\n", "err\n"), CommandOutput(0, "", "")]


def test_an_account_that_is_not_for_logins_is_said(lab, fresh_host):
    host = fresh_host(shell="/usr/sbin/nologin")
    with pytest.raises(LinkError, match="not available"):
        over(endpoint(lab, host), "true")


def test_importing_the_rest_does_not_import_asyncssh():
    code = "import sys, skyward.core.nodes.bootstrap, skyward.providers.ssh; sys.exit('asyncssh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
