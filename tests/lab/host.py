"""One remote machine of the lab, seen from the test that uses it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .net import Net, ip
from .process import identity
from .seed import HOST_KEY, HostOptions, make_key, search_path, uid_of
from .wait import eventually

__all__ = ["Host", "LabError"]

SSH_PORT = 22


class LabError(RuntimeError):
    """The lab could not do what it was asked; says what and, for a host, its console."""


@dataclass(frozen=True)
class Switch:
    """What a host asks of the lab that owns it."""

    off: Callable[[str], None]
    on: Callable[[str], None]


class Host:
    """A machine with its own kernel namespaces, disk, sshd and host key. Made by `Lab.up`.

    All methods may be called from any thread; those that look inside raise LabError when the
    host is off.
    """

    port = SSH_PORT
    user = "root"

    def __init__(self, name: str, k: int, net: Net, folder: Path, options: HostOptions, switch: Switch) -> None:
        self.name = name
        self.address = net.address(k)
        self.options = options
        self.folder = folder
        self.start_time = 0.0
        self.public_key = _key_line(folder / "seed" / HOST_KEY)
        self.recorded_key = self.public_key
        self.number = k
        self._nic = net.nic(k)
        self._switch = switch
        self._first: tuple[int, int] | None = None

    def __repr__(self) -> str:
        state = "on" if self.alive else "off"
        return f"<Host {self.name} {self.address} {state}>"

    # What it is doing

    @property
    def alive(self) -> bool:
        """Whether it is switched on (it may be cut off all the same)."""
        return self._first is not None and identity(self._first[0]) == self._first

    @property
    def root(self) -> Path:
        """Its root folder as seen from here; absolute links in it lead astray."""
        return Path(f"/proc/{self._running()}/root")

    @property
    def console(self) -> str:
        """What its start and its sshd wrote so far."""
        log = self.folder / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def run(
        self,
        *argv: str,
        user: str | None = None,
        input: str | None = None,
        check: bool = False,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, without ssh, in the user's home and with a login's PATH."""
        user = user or self.user
        uid = str(uid_of(self.options, user))
        home = "/root" if user == "root" else f"/home/{user}"
        enter = ["nsenter", "-t", str(self._running()), "-m", "-n", "-p", "-u", "-i"]
        variables = [f"HOME={home}", f"USER={user}", f"PATH={search_path(self.options)}"]
        return subprocess.run(
            [*enter, "-S", uid, "-G", uid, "--", "env", "-i", "-C", home, *variables, *argv],
            input="" if input is None else input,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
        )

    def pids(self) -> list[tuple[int, str]]:
        """(pid inside, command line) of what runs besides the first process and the sshd listener.

        The sshd processes of open connections ("sshd: root@notty") are among them.
        """
        found = []
        for entry in (self.root / "proc").iterdir():
            if not entry.name.isdigit() or entry.name == "1":
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue  # ended meanwhile
            # A zombie has no command line; the listener calls itself "sshd: /usr/sbin/sshd -D …".
            if command and not command.startswith("sshd: /usr/sbin/sshd"):
                found.append((int(entry.name), command))
        return sorted(found)

    def named(self, name: str) -> list[int]:
        """Pids inside of the processes of this name, such as "skyward-agent"."""
        found = []
        for pid, _ in self.pids():
            with suppress(OSError):  # it has ended meanwhile
                if (self.root / f"proc/{pid}/comm").read_text().strip() == name:
                    found.append(pid)
        return found

    def wait_until_quiet(self, timeout: float = 30.0) -> None:
        """Return once nothing runs but the first process and the sshd listener; TimeoutError names what still does."""
        try:
            eventually(lambda: not self.pids(), timeout)
        except TimeoutError:
            left = [f"{pid} (of {self._parent(pid)}) {command}" for pid, command in self.pids()]
            raise TimeoutError(f"after {timeout:g} s there still run on {self.name}: {'; '.join(left)}") from None

    @property
    def rx_bytes(self) -> int:
        """Bytes it has received (counted at the bridge, so without what a cut line lost)."""
        return self._count("tx_bytes")

    @property
    def tx_bytes(self) -> int:
        """Bytes it has sent."""
        return self._count("rx_bytes")

    # What can happen to it

    def kill(self) -> None:
        """Pull the plug: all of it vanishes at once and no packet says so. May be repeated."""
        self._first = None
        self._switch.off(self.name)

    def restart(self) -> None:
        """Switch it on anew, from power on or off: same address, name and first key, empty disk."""
        self.kill()
        self._switch.on(self.name)

    def cut(self) -> None:
        """Take its line down; it runs on. Both sides meet silence."""
        ip(f"link set {self._nic} down")

    def mend(self) -> None:
        """Put its line up again."""
        ip(f"link set {self._nic} up")

    def thin(self, rate: float) -> None:
        """From now on its line brings it so many bytes per second at most; what it sends is not held back."""
        bucket = ["tbf", "rate", f"{rate * 8:.0f}bit", "burst", "32kb", "latency", "250ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", self._nic, "root", *bucket], check=True, capture_output=True)

    def rekey(self) -> None:
        """Give it another host key; `Lab.known_hosts` keeps the old one. Open sessions live on."""
        make_key(self.root / HOST_KEY, self.name)
        self.public_key = _key_line(self.root / HOST_KEY)
        self.run("kill", "-HUP", (self.root / "run/sshd.pid").read_text().strip(), check=True)
        eventually(self._shows_its_key, what=f"the new host key of {self.name}")

    def _shows_its_key(self) -> bool:
        scan = ["ssh-keyscan", "-t", "ed25519", "-T", "1", self.address]
        done = subprocess.run(scan, capture_output=True, text=True, check=False)
        return " ".join(self.public_key.split()[:2]) in done.stdout

    # For the lab that owns it

    def switched_on(self, pid: int) -> None:
        """Take note of its first process; called by its lab."""
        self._first = identity(pid)
        self.start_time = time.time()
        self.public_key = self.recorded_key

    def answers(self) -> bool:
        """Whether its sshd answers; LabError with its console if it died on the way."""
        if not self.alive:
            raise LabError(f"{self.name} died while starting:\n{self.console}")
        try:
            # A packet sent before its eth0 is up is lost, and the kernel tries again after 1 s only.
            patience = 0.1 + 4 * self.options.delay
            with socket.create_connection((self.address, SSH_PORT), patience) as line:
                line.settimeout(1 + patience)
                return line.recv(4) == b"SSH-"
        except OSError:
            return False

    def _running(self) -> int:
        first = self._first
        if first is None or identity(first[0]) != first:
            raise LabError(f"{self.name} is off")
        return first[0]

    def _parent(self, pid: int) -> str:
        """The pid inside of a process' parent; "?" if it has ended."""
        with suppress(OSError):
            return (self.root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return "?"

    def _count(self, counter: str) -> int:
        return int(Path(f"/sys/class/net/{self._nic}/statistics/{counter}").read_text())


def _key_line(private: Path) -> str:
    return Path(f"{os.fspath(private)}.pub").read_text().strip()
