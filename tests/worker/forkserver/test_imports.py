"""What may be imported ahead of slots, and what may not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from skyward.worker.forkserver.imports import Imports, parse
from tests.worker.helpers import ROOT

_SCRIPT = """
    import os, site, sys
    site.getsitepackages = lambda: [{installed!r}]
    sys.path[:0] = [{installed!r}, {own!r}, {root!r}]
    from skyward.worker.forkserver.imports import Unfit, import_ahead
    tried = []
    try:
        import_ahead({names!r}, {variables!r}, tried.append)
    except Unfit as error:
        print("unfit:", error, end=" ")
    print([name for name in ("good", "good.part", "mine", "subject") if name in sys.modules], tried)
"""


class Place:
    """Two folders with modules, an installed one and the user's."""

    def __init__(self, folder: Path) -> None:
        self.installed, self.own = folder / "installed", folder / "own"
        (self.installed / "good").mkdir(parents=True)
        (self.installed / "good" / "__init__.py").touch()
        (self.installed / "good" / "part.py").touch()
        self.own.mkdir()
        (self.own / "mine.py").touch()

    def import_ahead(self, *names: str, variables: dict[str, str | None] | None = None) -> str:
        code = _SCRIPT.format(
            installed=str(self.installed), own=str(self.own), root=str(ROOT), names=names, variables=variables or {}
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_installed_is_imported(place: Place) -> None:
    names = ["good", "mine", "good.part", "good.missing", "not_there", "made.up"]
    assert place.import_ahead(*names) == "['good', 'good.part'] [0, 1, 4, 5, 6]"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "threads"),
        ("kept = open(__file__)", "open files"),
        ("import socket; kept = socket.socketpair()", "open files"),
        ("import multiprocessing; kept = multiprocessing.Lock()", "shared memory"),  # as tqdm does
        ("import mmap; kept = mmap.mmap(-1, 4096)", "shared memory"),
        ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal handlers"),
        ("import os; os.chdir('/')", "the working directory"),
        ("import mine", "mine, which is not an installed module"),
    ],
)
def test_what_a_fork_can_not_inherit_is_unfit(place: Place, code: str, verdict: str) -> None:
    (place.installed / "subject.py").write_text(code)
    report = place.import_ahead("good", "subject", "good.part")
    assert report.startswith("unfit")
    assert verdict in report
    assert report.endswith("[0, 1]")  # which shows which module it was


def test_an_import_that_fails_is_left_to_the_slot(place: Place) -> None:
    (place.installed / "subject.py").write_text("raise RuntimeError")
    assert place.import_ahead("subject", "good") == "['good'] [0, 1, 2]"


def test_variables_that_a_module_sets_itself_and_others(place: Place) -> None:
    (place.installed / "subject.py").write_text("import os; os.environ['SAID'] = 'so'")
    assert place.import_ahead("subject", variables={"SAID": "so", "GONE": None}) == "['subject'] [0, 1]"
    assert place.import_ahead("subject", variables={"SAID": "otherwise"}).startswith(
        "unfit: the environment variable SAID"
    )


def test_what_slots_report(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    try:
        imports = Imports(write)
        imports.report()
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        monkeypatch.setitem(sys.modules, "just_imported", sys)
        monkeypatch.setenv("JUST_SET", "caf\udce9")  # Latin-1
        monkeypatch.setenv("OMP_NUM_THREADS", "7")  # which is set for libraries in another way, too
        imports.report()
        imports.report()
        assert parse(os.read(read, 65536)) == (["just_imported"], {"JUST_SET": "caf\udce9"})
        monkeypatch.delitem(sys.modules, "just_imported")
        imports.report()  # it has become less
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(ValueError, match="not names"):
        parse(b"\x92\x91\x01\x80")
