"""The machine room: the process that holds everything a lab is made of, and clears it away.

One process in a session of its own for each lab, started by `Lab` as
``python -m tests.lab.room SOCKET OWNER``. It takes orders as lines of JSON from its owner, one at
a time, on one thread. It ends, and removes all, on the order "close", when the socket is at its
end, when the owner has died, or on SIGTERM. Its processes die with it (parent-death signal); what
is not a process, bridge and folder, is swept by the next lab's room if this one is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .net import BASE, Net, ip, used_numbers
from .process import identity

__all__ = ["Room", "main"]

_BOOT = Path(__file__).with_name("boot.sh")
_CABLE = Path(__file__).with_name("longline.py")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE = 30.0
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
_UNSHARE = ("unshare", *_NAMESPACES, "--propagation", "private", "--fork", "--kill-child=KILL")


@dataclass
class _Box:
    """A host that is switched on: its processes, and its place on the bridge."""

    nic: str
    process: subprocess.Popen[bytes]
    line: socket.socket
    init: int = 0
    watch: int = -1
    cable: subprocess.Popen[bytes] | None = None

    def pull_the_plug(self) -> None:
        """Kill all of it; the link goes first so that no FIN or RST leaves."""
        ip(f"link set {self.nic} down", check=False)
        # The first process takes everything inside along, and unshare, its parent, waits for it.
        if self.watch < 0:
            self.process.kill()  # not that far yet; --kill-child sees to the rest
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.watch, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until nothing of it runs or is wired any more."""
        self.process.wait()
        if self.watch >= 0:
            select.select([self.watch], [], [], _PATIENCE)
            os.close(self.watch)
        if self.cable is not None:
            self.cable.kill()
            self.cable.wait()
        ip(f"link del {self.nic}", check=False)
        self.line.close()


class Room:
    """A lab's bridge, hosts and servers. Only `main` and tests of the room make one."""

    def __init__(self) -> None:
        with _one_at_a_time():
            _sweep()
            BASE.mkdir(exist_ok=True)
            taken = used_numbers(entry.name for entry in BASE.iterdir())
            # Not the first free one: a number should not mean another lab a moment after its end.
            start = os.getpid()
            number = next((n % 256 for n in range(start, start + 256) if n % 256 not in taken), None)
            if number is None:
                raise OSError("all 256 subnets of 10.77.0.0/16 are in use")
            self.net = Net(number)
            self.folder = BASE / str(number)
            self.folder.mkdir(mode=0o700)
            self.boxes: dict[str, _Box] = {}
            self.servers: list[subprocess.Popen[bytes]] = []
            self._note()
            self._build_bridge()

    def __repr__(self) -> str:
        return f"<Room {self.net!r} hosts: {len(self.boxes)} servers: {len(self.servers)}>"

    def _build_bridge(self) -> None:
        bridge = self.net.bridge
        # Left to itself a bridge takes the lowest MAC of its ports, so it would change under the
        # hosts' ARP caches whenever a host comes or goes.
        ip(
            f"link add {bridge} address {self.net.mac(1)} type bridge",
            f"link set {bridge} addrgenmode none",
            f"addr add {self.net.gateway}/24 dev {bridge}",
            f"link set {bridge} up",
        )

    def boot(self, hosts: list[dict[str, Any]]) -> dict[str, int]:
        """Switch on hosts ({name, k, delay, rate}); the pids of their first processes."""
        new: dict[str, _Box] = {}
        try:
            for host in hosts:
                new[host["name"]] = self._start_box(host)
            for box in new.values():
                box.init = int(_read_line(box.line.fileno(), "a host's first process"))
                box.watch = os.pidfd_open(box.init)
            wires = [self._wire(host, new[host["name"]]) for host in hosts]
            ip(*(command for commands in wires for command in commands))
            for box in new.values():
                box.line.sendall(b"go\n")
        except BaseException:
            for box in new.values():
                box.pull_the_plug()
            for box in new.values():
                box.wait()
            raise
        self.boxes.update(new)
        self._note()
        return {name: box.init for name, box in new.items()}

    def _start_box(self, host: dict[str, Any]) -> _Box:
        folder = self.folder / host["name"]
        ours, theirs = socket.socketpair()
        with theirs, (folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                [*_DIES_WITH_US, *_UNSHARE, "--", "/bin/sh", str(_BOOT), str(folder)],
                stdin=theirs.fileno(),
                stdout=console,
                stderr=console,
                cwd="/",
                env={"PATH": _PATH},
                start_new_session=True,
            )
        box = _Box(self.net.nic(host["k"]), process, ours)
        if host["delay"]:
            ends = [box.nic, self.net.far_nic(host["k"])]
            terms = [str(host["delay"]), str(host["rate"])]
            box.cable = self._start_helper([str(_CABLE), *ends, *terms])
            assert box.cable.stdout is not None
            _read_line(box.cable.stdout.fileno(), "the long cable")
        return box

    def _wire(self, host: dict[str, Any], box: _Box) -> list[str]:
        """The commands that lead a cable from the bridge into the host, where it is eth0."""
        if box.cable is None:
            cable = [f"link add {box.nic} type veth peer name eth0 netns {box.init}"]
        else:
            cable = [f"link set {self.net.far_nic(host['k'])} netns {box.init} name eth0"]
        k = host["k"]
        # The address is pinned to the MAC so that a dead host is met with silence, as a far one
        # is, and not with "no route to host" from this machine's own failing ARP.
        return [
            *cable,
            f"link set {box.nic} addrgenmode none",
            f"link set {box.nic} master {self.net.bridge} up",
            f"neigh replace {self.net.address(k)} lladdr {self.net.mac(k)} dev {self.net.bridge} nud permanent",
        ]

    def unplug(self, name: str) -> None:
        """Pull a host's plug; silent about a host that is off."""
        box = self.boxes.pop(name, None)
        if box is not None:
            box.pull_the_plug()
            box.wait()
            self._note()

    def serve(self, folder: str) -> str:
        """Serve a folder of wheels to the hosts; the index's URL."""
        server = self._start_helper(["-m", "tests.lab.index", folder, self.net.gateway, str(self.folder)])
        self.servers.append(server)
        self._note()
        assert server.stdout is not None
        return _read_line(server.stdout.fileno(), "the index")

    def _start_helper(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_DIES_WITH_US, sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def _note(self) -> None:
        """Write down who we are and what we started, for the sweep after our sudden death."""
        cables = [box.cable for box in self.boxes.values() if box.cable is not None]
        started = [box.process for box in self.boxes.values()] + cables + self.servers
        pids = [process.pid for process in started] + [box.init for box in self.boxes.values()]
        state = {
            "room": identity(os.getpid()),
            "processes": [seen for pid in pids if (seen := identity(pid)) is not None],
        }
        draft = self.folder / "state.new"
        draft.write_text(json.dumps(state))
        draft.rename(self.folder / "state")

    def close(self) -> None:
        """Remove everything: processes first, then links, then the folder."""
        for box in self.boxes.values():
            box.pull_the_plug()
        for server in self.servers:
            server.kill()
        for box in self.boxes.values():
            box.wait()
        for server in self.servers:
            server.wait()
        with _one_at_a_time():
            _remove(self.net, self.folder)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep other rooms from choosing a number, sweeping or leaving meanwhile.

    The lock is on the folder above ours, so that no lock file has to stay behind.
    """
    fd = os.open(BASE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep() -> None:
    """Remove what rooms left that died without clearing up."""
    for folder in BASE.iterdir() if BASE.exists() else ():
        try:
            state = json.loads((folder / "state").read_text())
        except (OSError, ValueError):
            state = {"room": [0, 0], "processes": []}  # died while it was being made
        pid, start = state["room"]
        if identity(pid) == (pid, start):
            continue
        for pid, start in state["processes"]:
            if identity(pid) == (pid, start):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _remove(Net(int(folder.name)), folder)


def _remove(net: Net, folder: Path) -> None:
    commands = [f"link del {name}" for name in net.interfaces()]
    if commands:
        ip(*commands, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        BASE.rmdir()  # the last lab turns off the light


def _read_line(fd: int, who: str) -> str:
    """A line from a process we started, byte by byte as nothing may be read past it."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], _PATIENCE)
        byte = os.read(fd, 1) if ready else b""
        if not byte:
            raise OSError(f"{who} {'ended' if ready else 'is silent'} instead of being ready")
        line += byte
    return line.decode().strip()


def _serve(room: Room, orders: socket.SocketIO, answers: IO[bytes], owner: int) -> None:
    """Carry out orders until told to close, or until nobody is there to give them."""
    verbs: dict[str, Callable[..., Any]] = {
        "boot": room.boot,
        "unplug": room.unplug,
        "serve": room.serve,
    }
    watch = os.pidfd_open(owner)
    # A child that the owner forked may hold the socket open after the owner's death, so the
    # socket's end alone is not enough.
    while _wait_for_order(orders.fileno(), watch):
        line = orders.readline()
        order = json.loads(line) if line else {"verb": "close"}
        verb = order.pop("verb")
        if verb == "close":
            return
        try:
            answer = {"value": verbs[verb](**order)}
        except Exception as error:  # every failure is the owner's to raise
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _wait_for_order(orders: int, watch: int) -> bool:
    """Wait for an order or for the owner's death; False if it is the latter."""
    ready, _, _ = select.select([orders, watch], [], [])
    return watch not in ready


def main(sock: int, owner: int) -> None:
    """Run a room for the process `owner`, which holds the other end of `sock`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    line = socket.socket(fileno=sock)
    orders, answers = line.makefile("rb", buffering=0), line.makefile("wb")
    if os.getppid() != owner:
        return  # it died while we were starting
    try:
        room = Room()
    except Exception as error:
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        answers.flush()
        return
    try:
        answers.write(json.dumps({"value": room.net.number}).encode() + b"\n")
        answers.flush()
        _serve(room, orders, answers, owner)
    except (BrokenPipeError, ConnectionError):
        pass  # the owner died; what it wanted no longer matters
    finally:
        room.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
