"""How a pool ends: by its block, by the end of its program, by Ctrl-C, and when nobody refers to it any more."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.running_pool import RunningPool
from tests.core.folder_cloud import FolderCloud
from tests.lab.wait import eventually
from tests.processes import comm


@pytest.mark.slow
def test_the_block_waits_for_its_tasks_and_an_exception_does_not() -> None:
    """Leaving the block waits, as an executor does; leaving it by an exception gives the tasks up."""
    with sky.Compute(console=False) as pool:
        future = pool.submit(time.sleep, 0.3)
    assert future.result() is None
    began = time.monotonic()
    with pytest.raises(KeyError), sky.Compute(console=False) as pool:
        future = pool.submit(time.sleep, 60)
        raise KeyError("x")
    assert future.cancelled()
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [[], [sky.plugins.joblib()]], ids=["plain", "joblib"])
def test_a_block_that_sent_no_task_says_so_at_its_end(plugins: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Nodes that were waited for, and perhaps paid, for nothing: with the way that is open to this pool."""
    with sky.Compute(plugins=plugins, console=False):
        pass
    (said,) = [record.message for record in caplog.records if "no task was sent" in record.message]
    assert said.startswith("no task was sent to the nodes of sky-")
    assert ("plugins=[" in said) is (not plugins)


@pytest.mark.slow
def test_a_block_that_sent_tasks_or_failed_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One task is enough; after an exception there are other worries."""
    with sky.Compute(console=False) as pool:
        pool.submit(abs, -1)
    with pytest.raises(KeyError), sky.Compute(console=False):
        raise KeyError
    assert not [record for record in caplog.records if "no task was sent" in record.message]


def _script(text: str, tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text("import os, signal, sys, time, threading\nimport skyward as sky\n" + textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def _alive(session: int) -> list[str]:
    """Processes whose environment carries the script's mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"SKY_TEST_MARK={session}".encode() in environment.split(b"\0") and state != "Z":
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found.append(f"{entry.name}, {comm(int(entry.name))}, {state}: {command}")
    return found


BLOCK = """
with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2, executor="process"), console=False) as pool:
    futures = [pool.submit(time.sleep, 100) for _ in range(8)]
    print("running", flush=True)
    {what}
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGINT twice", "SIGTERM", "exit", "abandoned"])
def test_however_the_driver_ends_nothing_is_left(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9, Ctrl-C once and twice, kill, sys.exit, a pool that nobody closed: no process stays."""
    mark = os.getpid() * 1000 + hash(how) % 1000
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    what = "sys.exit(3)" if how == "exit" else "concurrent = [f.result() for f in futures]"
    text = BLOCK.format(what=what)
    if how == "abandoned":
        text = "pool = sky.Compute(console=False).start()\nprint('running')\n"
    script = _script(text, tmp_path)
    assert script.stdout is not None
    assert script.stdout.readline() == "running\n"
    if how.startswith("SIG"):
        script.send_signal(getattr(signal, how.split(maxsplit=1)[0]))
        if "twice" in how:
            script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=30)
    if how in ("exit", "abandoned"):
        assert script.returncode == (3 if how == "exit" else 0)
        assert "Traceback" not in errors
    eventually(lambda: not _alive(mark))


WORK = """
    def work(path):
        while not os.path.exists(path + ".go"):
            time.sleep(0.01)
        open(path, "w").close()

    pool = sky.Compute(concurrency=2).start()
    futures = [pool.submit(work, {path!r} + str(number)) for number in range(3)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "del pool", "pool.shutdown(wait=False)", "sys.exit(0)"])
def test_a_program_that_ends_finishes_what_was_submitted(end: str, tmp_path: Path) -> None:
    """As executors of the standard library do, and it says what it waits for."""
    path = str(tmp_path / "done")
    script = _script(textwrap.dedent(WORK).format(path=path) + end, tmp_path)
    assert script.stderr is not None
    assert "has finished but waits for 3 tasks of sky-" in script.stderr.readline()
    for number in range(3):
        Path(f"{path}{number}.go").touch()
    script.communicate(timeout=30)
    assert script.returncode == 0
    assert all(Path(f"{path}{number}").exists() for number in range(3))


@pytest.mark.slow
def test_ctrl_c_hurries_a_program_that_waits_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of all its pools are given up."""
    mark = os.getpid() * 1000 + 997
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    work = textwrap.dedent(WORK).format(path=str(tmp_path / "never"))
    script = _script(f"{work}other = sky.Compute(console=False).start()\nother.submit(time.sleep, 100)\n", tmp_path)
    assert script.stderr is not None
    assert "waits for" in script.stderr.readline()
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=30)
    # It depends on which was waited for first.
    assert re.search("cancelled (3 unfinished tasks|1 unfinished task) of sky-", errors)
    assert "Traceback" not in errors
    eventually(lambda: not _alive(mark))


@pytest.mark.slow
def test_ctrl_c_is_answered_while_machines_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does at the first, and at the second what a third would mean: these machines don't end by themselves."""
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    cloud = FolderCloud(str(tmp_path / "cloud"))
    Path(cloud.folder).mkdir()
    sticky = Path(cloud.folder) / "sticky"
    sticky.touch()
    script = _script(
        f"""
        from tests.core.folder_cloud import FolderCloud
        with sky.Compute(provider=FolderCloud({cloud.folder!r})):
            pass
        """,
        tmp_path,
    )
    assert script.stderr is not None
    eventually((Path(cloud.folder) / "machines").exists, 30)
    script.send_signal(signal.SIGINT)
    lines = iter(script.stderr.readline, "")
    assert "terminating 1 machine(s) of sky-" in next(line for line in lines if "terminating" in line)
    script.send_signal(signal.SIGINT)
    told = next(line for line in lines if "second Ctrl-C" in line)
    assert told.rstrip().endswith("a second Ctrl-C leaves that to a background process; check with `skyward ls`")
    sticky.unlink()
    script.communicate(timeout=60)
    assert cloud.left() == []


@pytest.mark.slow
def test_a_fork_of_the_driver_does_not_keep_nodes_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that outlives a killed driver holds no lifeline."""
    mark = os.getpid() * 1000 + 998
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    script = _script(
        """
        pool = sky.Compute(console=False).start()
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        print(child, flush=True)
        time.sleep(30)
        """,
        tmp_path,
    )
    assert script.stdout is not None
    child = int(script.stdout.readline())
    script.kill()
    try:
        with suppress(TimeoutError):
            eventually(lambda: not any("skyward.worker" in process for process in _alive(mark)), 30)
        assert [process for process in _alive(mark) if "skyward.worker" in process] == []
    finally:
        os.kill(child, signal.SIGKILL)
        script.communicate(timeout=10)


@pytest.mark.slow
def test_ctrl_c_while_starting_releases_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before the nodes are ready ends as one after."""
    mark = os.getpid() * 1000 + 999
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    for delay in (0.0, 0.02, 0.1, 0.2):
        script = _script(
            f"""
            timer = threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with sky.Compute(nodes=2, concurrency=2, console=False) as pool:
                timer.join()
                # Here if Python lost the interrupt: it prints and ignores what is raised in a callback of a weak
                # reference, and each import has one. As anyone would, press again.
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
            """,
            tmp_path,
        )
        _, errors = script.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
        assert "Traceback" in errors
        eventually(lambda: not _alive(mark))


@pytest.mark.slow
def test_ctrl_c_while_the_pool_is_made_leaves_nothing() -> None:
    """At any line of it, when nobody else knows yet what exists."""
    made = RunningPool.__init__.__code__
    lines = sorted({line for _, _, line in made.co_lines() if line is not None and line > made.co_firstlineno})
    assert len(lines) > 10
    before = set(threading.enumerate())
    for line in lines:

        def trace(frame: types.FrameType, event: str, _: object, line: int = line) -> Any:
            if frame.f_code is not made:
                return None
            if event == "line" and frame.f_lineno == line:
                frame.f_trace = None
                signal.raise_signal(signal.SIGINT)
            return trace

        others = sys.gettrace()
        sys.settrace(trace)
        try:
            with pytest.raises(KeyboardInterrupt):
                sky.Compute(console=False).start()
        finally:
            sys.settrace(others)
        assert set(threading.enumerate()) <= before, line
