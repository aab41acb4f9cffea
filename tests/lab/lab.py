"""The lab: a bridge with remote machines on it, as long as a with block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import urlsplit

from .host import Host, LabError, Switch
from .net import BASE, Net, ip
from .seed import HostOptions, Options, make_key, plant
from .wait import eventually

__all__ = ["Lab", "missing"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "ssh", "ssh-keygen", "ssh-keyscan")
_START_LIMIT = 30.0
_FIRST_HOST, _LAST_HOST = 10, 199
_FIRST_UNUSED, _LAST_UNUSED = 200, 254


def missing() -> str | None:
    """Why no lab can be had on this machine; None if one can."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if not Path("/usr/sbin/sshd").exists():
        absent.append("/usr/sbin/sshd")
    if absent:
        return f"the lab needs {', '.join(absent)} (openssh-server, openssh-client, iproute2)"
    return None


class Lab:
    """Remote machines on this one. Needs root, OpenSSH and iproute2; see `missing`.

    `Lab()` starts a process of its own (room.py) that owns all there is and clears it away on
    `close`, or when this process dies. Methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        # Guards the line to the room: an order and its answer belong together.
        self._turn = threading.Lock()
        # Guards the table of hosts and the counters of names and addresses.
        self._books = threading.Lock()
        self._hosts: dict[str, Host] = {}
        self._born = 0
        self._unused = _LAST_UNUSED
        self._open_room()
        self.gateway = self.net.gateway
        self.folder = BASE / str(self.net.number)
        self.key = self.folder / "id_ed25519"
        self.known_hosts = self.folder / "known_hosts"
        make_key(self.key, "lab-client")
        self.known_hosts.touch()

    def __repr__(self) -> str:
        return f"<Lab {self.net.number} gateway {self.gateway} hosts: {len(self._hosts)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def hosts(self) -> list[Host]:
        """The hosts there are, on or off, oldest first."""
        with self._books:
            return list(self._hosts.values())

    def up(self, n: int = 1, **options: Unpack[Options]) -> list[Host]:
        """Start n hosts at once and wait until their sshd answers; options as in `HostOptions`."""
        self._check_open()
        chosen = HostOptions(**options)
        numbers = self._take_numbers(n)
        with ThreadPoolExecutor(max(1, min(n, 16)), "lab-up") as pool:
            hosts = list(pool.map(lambda place: self._make(place, chosen), numbers))
        with self._books:
            self._hosts.update((host.name, host) for host in hosts)
            self._write_known_hosts()
        try:
            self._switch_on(hosts)
        except BaseException:
            for host in hosts:
                self.remove(host)
            raise
        return hosts

    def remove(self, host: Host) -> None:
        """Pull the host's plug and forget it. May be repeated."""
        with contextlib.suppress(LabError):  # no room, no host
            host.kill()
        with self._books:
            self._hosts.pop(host.name, None)
            if self.folder.exists():
                self._write_known_hosts()
        shutil.rmtree(host.folder, ignore_errors=True)

    def unused_address(self) -> str:
        """An address of the subnet where nobody answers, in any way; another at each call."""
        with self._books:
            k, self._unused = self._unused, self._unused - 1
            if self._unused < _FIRST_UNUSED:
                self._unused = _LAST_UNUSED
        # Pinned to a card that nobody has: packets leave and are lost, as on a real network.
        place, card = self.net.address(k), self.net.mac(k)
        ip(f"neigh replace {place} lladdr {card} dev {self.net.bridge} nud permanent")
        return place

    def serve_index(self, wheel_dir: str | Path) -> str:
        """Serve a folder of wheels as a simple index to the hosts until the end; its URL."""
        return str(self._order(verb="serve", folder=str(Path(wheel_dir).resolve(strict=True))))

    def requests(self, index: str) -> list[tuple[str, str]]:
        """What an index was asked for so far: the host's address and the path, of each request."""
        log = self.folder / str(urlsplit(index).port)
        lines = log.read_text().splitlines() if log.exists() else []
        return [(host, path) for host, _, path in (line.partition(" ") for line in lines)]

    def close(self) -> None:
        """Remove all hosts and the network. May be repeated."""
        if os.getpid() != self._pid:
            return  # a forked child's copy must not end its parent's lab
        with self._turn:
            if self._line.fileno() < 0:
                return
            with contextlib.suppress(OSError):  # the room may be gone already
                self._line.sendall(b'{"verb": "close"}\n')
            self._room.wait(_START_LIMIT)
            self._line.close()
            self._answers.close()

    def _open_room(self) -> None:
        self._line, theirs = socket.socketpair()
        self._answers = self._line.makefile("rb")
        with theirs:
            self._room = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.room", str(theirs.fileno()), str(self._pid)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=_REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
                start_new_session=True,
            )
        self.net = Net(self._answer())

    def _order(self, **order: Any) -> Any:
        with self._turn:
            self._check_open()
            try:
                self._line.sendall(json.dumps(order).encode() + b"\n")
            except OSError as error:
                raise LabError("the lab's room is gone") from error
            return self._answer()

    def _check_open(self) -> None:
        if self._line.fileno() < 0:
            raise LabError("the lab is closed")
        # Another lab may be sweeping our folder by now, so nothing more is put there.
        if self._room.poll() is not None:
            raise LabError("the lab's room is gone")

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise LabError("the lab's room is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["value"]

    def _take_numbers(self, n: int) -> list[tuple[str, int]]:
        """Names and address numbers for n hosts; those of removed hosts return last."""
        span = _LAST_HOST - _FIRST_HOST + 1
        with self._books:
            live = {host.number for host in self._hosts.values()}
            if n > span - len(live):
                raise LabError(f"a lab has room for {span} hosts")
            taken: list[tuple[str, int]] = []
            while len(taken) < n:
                k = _FIRST_HOST + self._born % span
                self._born += 1
                if k not in live:
                    taken.append((f"lab{self.net.number}-h{self._born}", k))
            return taken

    def _make(self, place: tuple[str, int], options: HostOptions) -> Host:
        name, k = place
        folder = self.folder / name
        client = self.key.with_suffix(".pub").read_text()
        plant(folder, name, (self.net.address(k), self.net.mac(k)), client, options)
        switch = Switch(off=self._switch_off, on=self._switch_on_again)
        return Host(name, k, self.net, folder, options, switch)

    def _switch_on(self, hosts: list[Host]) -> None:
        wanted = [{"name": h.name, "k": h.number, "delay": h.options.delay, "rate": h.options.rate} for h in hosts]
        try:
            pids = self._order(verb="boot", hosts=wanted)
        except LabError as error:
            consoles = "".join(f"\n{h.name}: {h.console}" for h in hosts if h.console)
            raise LabError(f"{error}{consoles}") from None
        for host in hosts:
            host.switched_on(pids[host.name])
        for host in hosts:
            eventually(host.answers, _START_LIMIT, f"sshd of {host.name}")

    def _switch_on_again(self, name: str) -> None:
        self._switch_on([self._hosts[name]])

    def _switch_off(self, name: str) -> None:
        self._order(verb="unplug", name=name)

    def _write_known_hosts(self) -> None:
        """Write the hosts' keys as they were at their start; the caller holds the books."""
        assert self._books.locked()
        draft = self.known_hosts.with_suffix(".new")
        draft.write_text("".join(f"{h.address} {h.recorded_key}\n" for h in self._hosts.values()))
        draft.replace(self.known_hosts)
