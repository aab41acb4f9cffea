"""Slots that replace others find loaded what those had imported."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from skyward.core.protocol.messages import Failure
from skyward.core.system import open_files
from skyward.worker.forkserver.heirs import Heir, Heirs
from skyward.worker.forkserver.protocol import EXITED, FAILED, FORK_ISOLATED, HUNG, REPORT, UP
from tests.processes import alive, descendants
from tests.worker.helpers import Owner, began, owner, wait_for

PACKAGES = ("mine", "many", "deadly")


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, Any]:
    """Return a Setup in which the packages `many` and `deadly` count as installed, and `mine` does not."""
    for package in PACKAGES:
        folder = tmp_path / ("own" if package == "mine" else "installed") / package
        folder.mkdir(parents=True)
        parts = [f"part_{number}" for number in range(25)]
        for part in parts:
            (folder / f"{part}.py").touch()
        code = f"from . import {', '.join(parts)}\n"
        if package == "deadly":
            code += "import os\nif open('/proc/self/comm').read() == 'skyward-forks\\n':\n    os._exit(3)\n"
        (folder / "__init__.py").write_text(code)
    folders = [str(tmp_path / "own"), str(tmp_path / "installed")]
    (tmp_path / "own" / "ahead.py").write_text(f"import site\nsite.getsitepackages = lambda: [{folders[1]!r}]\n")
    return {"concurrency": 1, "path": [*folders, str(Path(__file__).parents[3])], "preload": ["ahead"]}


def load() -> None:
    import deadly  # type: ignore[import-not-found]  # noqa: F401
    import many  # type: ignore[import-not-found]  # noqa: F401
    import mine  # type: ignore[import-not-found]  # noqa: F401


def loaded() -> tuple[list[str], int]:
    return [name for name in PACKAGES if name in sys.modules], os.getppid()


def slot_of_an_heir(node: Owner) -> int:
    """Let slots die until one comes from an heir; returns that one's parent."""
    node.call(load)

    def killed() -> int:
        assert node.failed(node.submit(os._exit, 5)).reason == Failure.CRASHED.value
        names, parent = node.call(loaded)
        assert names in ([], ["many"])  # never the user's own, nor what takes the heir's life
        return parent if names else 0

    return int(wait_for(killed, "a slot that has what others imported"))


@pytest.mark.slow
def test_what_slots_import_is_there_in_those_that_replace_them(installed: dict[str, Any]) -> None:
    with owner() as node:
        node.set_up(**installed)
        heir = slot_of_an_heir(node)
        pids = descendants(node.pid)
        os.kill(node.call(os.getpid), signal.SIGKILL)
        assert node.call(loaded) == (["many"], heir)
        assert node.call(os.getenv, "SKYWARD_SLOT") == "1"
        assert heir in pids
        began = time.monotonic()
    assert time.monotonic() - began < 5  # it ends with the others


@pytest.mark.slow
def test_an_heir_that_is_killed_takes_its_slots_along_and_nobody_else(installed: dict[str, Any]) -> None:
    with owner() as node:
        node.set_up(**installed)
        heir = slot_of_an_heir(node)
        slot, task = node.call(os.getpid), node.submit(time.sleep, 60)
        node.until(lambda: began(node, task), "its beginning")
        os.kill(heir, signal.SIGKILL)
        assert node.failed(task).reason == Failure.CRASHED.value
        wait_for(lambda: not alive(slot), "the end of its slot")
        names, parent = node.call(loaded)
        assert names == []
        assert parent != heir


@pytest.mark.slow
def test_heirs_die_with_the_agent(installed: dict[str, Any]) -> None:
    with owner() as node:
        node.set_up(**installed)
        slot_of_an_heir(node)
        pids = descendants(node.pid)
        os.kill(node.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, pids)), "the end of all", 10)
        node.cut()


@pytest.mark.slow
def test_an_import_that_hangs_is_not_waited_for() -> None:
    names: list[list[str]] = []
    reports, slots_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    reports.setblocking(False)

    def hang(control: socket.socket, wanted: list[str], _: object) -> None:
        control.send(b"\x05\x00\x00\x00\x02\x00\x00\x00\x00")  # it is at the third
        time.sleep(60)
        os._exit(0)

    heirs = Heirs(reports, lambda *_: None, hang, lambda *_: None, limit=0.1)
    poll = select.poll()
    heirs.watch(poll)
    slots_end.send(b"nonsense")
    slots_end.send(msgpack.packb([["a", "b", "hung", "hung.part", *(f"c.{number}" for number in range(30))], {}]))

    def attended() -> int:
        heirs.attend(dict(poll.poll(20)))
        for heir in heirs.all.values():
            if heir.names not in names:
                names.append(heir.names)
        return len(names) == 2

    try:
        wait_for(attended, "a second heir, without the name at which the first one hung")
        assert names[0][2:4] == ["hung", "hung.part"]
        assert names[1] == [name for name in names[0] if not name.startswith("hung")]
        assert not heirs.fork(1, 7, 1, [])
    finally:
        heirs.kill_all()
        for heir in heirs.all.values():
            os.waitpid(heir.pid, 0)
            heir.sock.close()
        reports.close()
        slots_end.close()


def test_a_report_of_an_heir_may_arrive_in_parts() -> None:
    reports, _ = socket.socketpair()
    gate, opener = os.pipe()
    said: list[tuple[int, int, int]] = []

    def tell(control: socket.socket, *_: object) -> None:
        report = REPORT.pack(FAILED, 7, errno.EAGAIN)
        control.send(REPORT.pack(UP, 0, 0) + report[:4])
        os.read(gate, 1)
        control.send(report[4:])
        os._exit(0)

    heirs = Heirs(reports, lambda *report: said.append(report), tell, lambda *_: None)
    poll = select.poll()
    heirs.watch(poll)
    heirs._make()
    (heir,) = heirs.all.values()

    def attended() -> Heir | None:
        heirs.attend(dict(poll.poll(20)))
        return heirs.current

    wait_for(attended, "the first report")
    os.write(opener, b"!")
    wait_for(lambda: not attended(), "its end")
    os.waitpid(heir.pid, 0)
    reports.close()
    for fd in (gate, opener):
        os.close(fd)
    assert said == [(FAILED, 7, errno.EAGAIN)]


@pytest.fixture
def stopped() -> Iterator[Heirs]:
    """Heirs of this process, of which one takes nothing: it stopped as it began."""

    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)

    reports, _ = socket.socketpair()
    heirs = Heirs(reports, lambda *_: None, stop, lambda *_: None)
    heirs.watch(select.poll())
    heirs._make()
    (heir,) = heirs.all.values()
    heirs.current = heir
    yield heirs
    if not heir.hung:
        os.kill(heir.pid, signal.SIGKILL)
        os.waitpid(heir.pid, 0)
    heir.sock.close()
    reports.close()


def test_a_fork_server_never_waits_for_an_heir_that_takes_nothing(stopped: Heirs) -> None:
    assert stopped.current is not None
    number = 0
    while stopped.fork(FORK_ISOLATED, number, 1, []):
        stopped.current.unborn.clear()  # as if it had made them
        number += 1
        assert number < 100_000
    stopped.kill(number - 1)
    stopped.end()


def test_slots_that_were_requested_hold_only_some_of_the_open_files(
    stopped: Heirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "limit", lambda: 64)
    assert [stopped.fork(FORK_ISOLATED, number, 1, []) for number in range(5)] == [True] * 4 + [False]
    assert stopped.current is not None
    stopped.current.discard_request(0)
    assert stopped.fork(FORK_ISOLATED, 5, 1, [])


def test_slots_of_an_heir_that_hung_are_said_to_be_lost_with_it(stopped: Heirs) -> None:
    heir = stopped.current
    assert heir is not None
    reported: list[tuple[int, int, int]] = []
    stopped._report = lambda *report: reported.append(report)
    heir.ready, heir.slots = True, {7: 0}
    heir.probe.heard(UP, 0)
    heir.probe.kills(7)
    pid = heir.pid

    def buried() -> bool:
        stopped.attend({})
        if heir.hung:
            os.waitpid(pid, 0)
            stopped.attend({heir.sock.fileno(): select.POLLIN})
        return bool(reported)

    stopped._period = 0.0
    wait_for(buried, "the end of the heir")
    assert reported == [(EXITED, 7, HUNG)]
