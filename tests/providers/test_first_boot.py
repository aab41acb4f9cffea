"""What a machine runs when it first boots: it parses, it does what it says, and the watchdog bites only the lonely.

The scripts run here as they are but for their paths, which lie in a folder of the test instead of in /.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skyward.core.machines.ssh_keys import make_key
from skyward.core.protocol.messages import HEARD_FILE
from skyward.core.spec import Order, Resources
from skyward.providers import first_boot

HOST, USER = make_key("host"), make_key("user")
ORDER = Order("sky-1", 1, Resources(), name="sky-1-1", orphan_timeout=2.0, host_key=HOST, user_key=USER.public)
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
END = "touch /run/ended"
BRIEF = replace(ORDER, orphan_timeout=1.0)


def wait_for(what: Callable[[], object], limit: float = 15.0) -> None:
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


class Machine:
    """A machine's paths in a folder, with commands that restart sshd: a systemctl that works, or none that does."""

    def __init__(self, folder: Path, *, systemd: bool = True) -> None:
        self.folder = folder
        for name in ("bin", "root", "run"):
            (folder / name).mkdir()
        self.heard = folder / HEARD_FILE.lstrip("/")
        self.ended = folder / "run" / "ended"
        self.authorized = folder / "root" / ".ssh" / "authorized_keys"
        self.restarted = folder / "restarted"
        self._command("systemctl", f'echo "$*" >>{self.restarted}' if systemd else "exit 1")
        self._command("service", "exit 1")
        self._processes: list[subprocess.Popen[str]] = []

    def _command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def moved(self, text: str) -> str:
        """A script with its paths in the folder; also those of the script that it has inside."""

        def decoded(match: re.Match[str]) -> str:
            inner = base64.b64decode(match[1]).decode()
            return f"echo {base64.b64encode(self.moved(inner).encode()).decode()} | base64 -d"

        text = re.sub(r"echo (\S+) \| base64 -d", decoded, text)
        return re.sub(r"(?<![\w./~])(/etc/ssh|/run/s|/run/ended|/usr/local/sbin)", rf"{self.folder}\1", text)

    def start(self, text: str, shell: str = "sh") -> subprocess.Popen[str]:
        environment = {"HOME": str(self.folder / "root"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        program = [shell, "sh"] if shell == "busybox" else [shell]
        process = subprocess.Popen(
            [*program, "-c", self.moved(text)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(self, text: str, shell: str = "sh") -> None:
        process = self.start(text, shell)
        assert process.wait(15) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""

    @property
    def keys(self) -> list[str]:
        """Who may log in."""
        return [line for line in self.authorized.read_text().splitlines() if line]

    def watchdogs(self) -> list[int]:
        """Processes that run this machine's watchdog: the leaders of their sessions, not what those fork to look."""
        place = str(self.folder / "usr/local/sbin/skyward-watchdog").encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if place in (path / "cmdline").read_bytes().split(b"\0"):
                    found.append(int((path / "stat").read_text().rpartition(")")[2].split()[3]))
            except OSError:
                continue
        return sorted(set(found))

    def close(self) -> None:
        for pid in self.watchdogs():
            os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- they parse ---


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("end", [None, "poweroff -f", """curl -X DELETE "https://api/x?y='z'" || echo $? >&2"""])
def test_the_scripts_parse(shell: str, end: str | None) -> None:
    texts = [first_boot.script(ORDER, end=end, before="echo 'before' \"it\"")]
    if end is not None:
        texts.append(first_boot.watchdog(ORDER, end))
        texts.append(json.loads(first_boot.cloud_config(ORDER, end=end).partition("\n")[2])["bootcmd"][0][2])
    program = ["busybox", "sh"] if shell == "busybox" else [shell]
    for text in texts:
        done = subprocess.run([*program, "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# --- the watchdog ---


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_it_ends_the_machine_after_so_much_silence(machine: Machine, shell: str) -> None:
    began = time.monotonic()
    machine.start(first_boot.watchdog(ORDER, END), shell)
    wait_for(machine.ended.exists)
    assert time.monotonic() - began >= 2


@pytest.mark.slow
def test_it_does_not_while_its_owner_is_heard(machine: Machine) -> None:
    """Longer than it would wait, whoever of the machine's users touches the file."""
    process = machine.start(first_boot.watchdog(ORDER, END))
    wait_for(machine.heard.exists)
    wait_for(lambda: mode(machine.heard) == 0o666)
    end = time.monotonic() + ORDER.orphan_timeout + 1.6  # in silence it would end after that and a second
    while time.monotonic() < end:
        os.utime(machine.heard)
        assert not machine.ended.exists()
        assert process.poll() is None
        time.sleep(0.2)


@pytest.mark.slow
def test_a_clock_that_jumps_does_not_end_it(machine: Machine) -> None:
    """A file from the future, or from long ago, is only compared with itself."""
    machine.start(first_boot.watchdog(ORDER, END))
    wait_for(machine.heard.exists)
    moment = time.time()
    for shift in (86400.0, -86400.0, 3.0, 0.0):
        os.utime(machine.heard, (moment + shift, moment + shift))
        time.sleep(0.9)  # less than the watchdog's limit, in which each of these is news
        assert not machine.ended.exists()


@pytest.mark.slow
def test_it_tries_again_when_the_end_fails(machine: Machine) -> None:
    """And a file that somebody removed is silence."""
    counter = machine.folder / "run" / "s-tries"
    machine.start(
        first_boot.watchdog(ORDER, 'echo x >>/run/s-tries; [ "$(wc -l </run/s-tries)" -lt 2 ] || touch /run/ended')
    )
    wait_for(machine.heard.exists)
    machine.heard.unlink()
    wait_for(machine.ended.exists)
    assert len(counter.read_text().split()) >= 2


@pytest.mark.slow
def test_it_ends_the_machine_at_its_deadline_even_if_its_owner_is_heard(machine: Machine) -> None:
    """Its share of the budget is spent."""
    deadline = time.time() + 2.0
    machine.start(first_boot.watchdog(replace(ORDER, deadline=deadline, orphan_timeout=15.0), END))
    wait_for(machine.heard.exists)

    def heard() -> bool:
        os.utime(machine.heard)
        return machine.ended.exists()

    wait_for(heard)
    assert time.time() >= deadline - 1.0  # it counts whole seconds


@pytest.mark.slow
def test_a_clock_that_is_weeks_ahead_does_not_end_it(machine: Machine) -> None:
    machine.start(first_boot.watchdog(replace(ORDER, deadline=time.time() - 30 * 86400.0), END))
    wait_for(machine.heard.exists)
    began = time.monotonic()
    wait_for(machine.ended.exists)  # for its silence
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("timeout", "limit", "step"), [(0.5, 1, 1), (1.2, 2, 1), (60.0, 60, 6), (600.0, 600, 15), (86400.0, 86400, 15)]
)
def test_how_often_it_polls(timeout: float, limit: int, step: int) -> None:
    """A tenth of the time, at most 15 s, so that it ends in time."""
    text = first_boot.watchdog(replace(ORDER, orphan_timeout=timeout), END)
    assert f"-ge {limit} ]" in text
    assert f"while sleep {step};" in text


# --- the script ---


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_shows_our_key_and_lets_us_in(machine: Machine, shell: str) -> None:
    old = machine.folder / "etc" / "ssh"
    old.mkdir(parents=True)
    for kind in ("rsa", "ecdsa", "ed25519"):
        (old / f"ssh_host_{kind}_key").write_text("the image's")
        (old / f"ssh_host_{kind}_key.pub").write_text("the image's")
    (old / "sshd_config").write_text("Port 22\n")
    machine.run(first_boot.script(ORDER, end=None, before=f"touch {machine.folder}/before"), shell)
    assert {path.name for path in old.iterdir()} == {"ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config"}
    assert (old / "ssh_host_ed25519_key").read_text() == HOST.private
    assert (old / "ssh_host_ed25519_key.pub").read_text() == f"{HOST.public}\n"
    assert mode(old / "ssh_host_ed25519_key") == 0o600
    assert machine.keys == [USER.public]
    assert (mode(machine.authorized), mode(machine.authorized.parent)) == (0o600, 0o700)
    assert machine.restarted.read_text() == "restart ssh\n"
    assert (machine.folder / "before").exists()
    assert machine.watchdogs() == []


def test_the_script_may_run_again_and_leaves_other_keys(machine: Machine) -> None:
    """As at each start; also where the image left the files open to others, without a line's end."""
    machine.authorized.parent.mkdir(mode=0o755)
    machine.authorized.write_text("ssh-ed25519 AAAA of the vendor\n")
    machine.authorized.chmod(0o666)
    for _ in range(2):
        machine.run(first_boot.script(ORDER, end=None))
    assert machine.keys == ["ssh-ed25519 AAAA of the vendor", USER.public]
    assert (mode(machine.authorized), mode(machine.authorized.parent)) == (0o600, 0o700)


def test_a_key_without_a_line_end_stays_a_key(machine: Machine) -> None:
    machine.authorized.parent.mkdir()
    machine.authorized.write_text("ssh-ed25519 AAAA of the vendor")
    machine.run(first_boot.script(ORDER, end=None))
    assert machine.keys == ["ssh-ed25519 AAAA of the vendor", USER.public]


def test_openssh_takes_the_key_that_was_written(machine: Machine) -> None:
    machine.run(first_boot.script(ORDER, end=None))
    key = machine.folder / "etc/ssh/ssh_host_ed25519_key"
    said = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True)
    assert said.stdout.split()[:2] == HOST.public.split()[:2]


@pytest.mark.slow
def test_the_watchdog_outlives_the_script_and_ends_the_machine(machine: Machine) -> None:
    machine.run(first_boot.script(BRIEF, end=END))
    wait_for(machine.watchdogs)
    wait_for(machine.ended.exists)
    assert mode(machine.folder / "usr/local/sbin/skyward-watchdog") == 0o755


def test_without_systemd_sshd_reloads_by_a_signal(tmp_path: Path) -> None:
    machine = Machine(tmp_path, systemd=False)
    sshd = subprocess.Popen(
        ["sh", "-c", f"trap 'echo hup >{machine.restarted}; exit' HUP; echo up; while :; do sleep 0.05; done"],
        stdout=subprocess.PIPE,
    )
    try:
        assert sshd.stdout is not None
        assert sshd.stdout.readline() == b"up\n"
        (tmp_path / "run" / "sshd.pid").write_text(f"{sshd.pid}\n")
        machine.run(first_boot.script(ORDER, end=None))
        wait_for(machine.restarted.exists)
    finally:
        sshd.kill()
        sshd.communicate()
        machine.close()


# --- cloud-init ---


def config(end: str | None = END, user: str | None = None) -> dict[str, object]:
    head, _, body = first_boot.cloud_config(BRIEF, end=end, user=user).partition("\n")
    assert head == "#cloud-config"
    return dict(json.loads(body))


def test_cloud_init_gets_our_key_only() -> None:
    said = config()
    assert said["ssh_keys"] == {"ed25519_private": HOST.private, "ed25519_public": HOST.public}
    assert (said["ssh_deletekeys"], said["ssh_pwauth"]) == (True, False)
    assert said["ssh_authorized_keys"] == [USER.public]
    assert said["disable_root"] is True
    assert "bootcmd" not in config(end=None)


def test_root_may_log_in_where_we_are_root() -> None:
    said = config(user="root")
    assert said["disable_root"] is False
    assert said["users"] == ["default", {"name": "root", "ssh_authorized_keys": [USER.public]}]


@pytest.mark.slow
def test_its_first_command_starts_one_watchdog_for_each_boot(machine: Machine) -> None:
    """bootcmd runs again whenever cloud-init does."""
    command = config()["bootcmd"]
    assert isinstance(command, list)
    ((shell, option, text),) = command
    assert (shell, option) == ("sh", "-c")
    machine.run(text)
    wait_for(machine.heard.exists)
    machine.run(text)
    assert len(machine.watchdogs()) == 1
    wait_for(machine.ended.exists)


def test_user_data_are_small() -> None:
    """AWS takes 16 KiB."""
    assert len(first_boot.cloud_config(ORDER, end="poweroff -f", user="root")) < 4096
    assert len(first_boot.script(ORDER, end="poweroff -f")) < 4096


@pytest.mark.usefixtures("cloud_init")
@pytest.mark.parametrize("user", [None, "root"])
def test_cloud_init_accepts_it(tmp_path: Path, user: str | None) -> None:
    path = tmp_path / "user-data"
    path.write_text(first_boot.cloud_config(ORDER, end="poweroff -f", user=user))
    done = subprocess.run(["cloud-init", "schema", "-c", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
