"""When a driver dies, however, a process that outlives it terminates what it bought; after an orderly end it does not.

The drivers are real processes, the provider's machines are files.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from skyward.core.errors import ProvisioningError
from skyward.core.machines import reaper
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Machine, Order, Resources
from tests.core.folder_cloud import FolderCloud
from tests.lab.wait import eventually

REPOSITORY = Path(__file__).resolve().parents[3]

# The provider's class lies beside the driver's script, as a user's own would.
MODULE = """
from tests.core.folder_cloud import FolderCloud

class Drawer(FolderCloud):
    pass
"""

DRIVER = """
import os, pickle, sys, time
from pathlib import Path
from skyward.core.machines import reaper
from skyward.core.machines.ssh_keys import make_key
from skyward.core.machines.ledger import Ledger
from skyward.core.spec import Order, Resources
from drawer import Drawer

state, folder, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tag = "sky-1-1-abcdef"
cloud, ledger = Drawer(folder), Ledger(state)
ledger.open_pool(tag, [(cloud.name, cloud.settings())], make_key(tag))
standby = reaper.start(tag, ledger.folder, pickle.dumps([cloud]))
for n in range(2):
    order = Order(tag, 1, Resources(), name=f"{tag}-{n}")
    ledger.intend(cloud.name, order)
    ledger.made(cloud.name, cloud.create(order))
fork = os.fork() if how == "fork" else -1
if fork == 0:
    time.sleep(600)
    os._exit(0)
print(standby.pid, fork, flush=True)
sys.stdin.readline()
if how == "orderly":
    cloud.destroy([machine.id for machine in cloud.machines(tag)])
    cloud.clear(tag)
    ledger.close_pool(tag)
    reaper.dismiss(standby)
"""


class Drive:
    """A driver that has bought two machines, and its reaper."""

    def __init__(self, folder: Path, how: str) -> None:
        self.state, self.cloud = folder / "state", FolderCloud(str(folder / "cloud"))
        Path(self.cloud.folder).mkdir(exist_ok=True)
        (folder / "drawer.py").write_text(MODULE)
        script = folder / "driver.py"
        script.write_text(DRIVER)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.state), self.cloud.folder, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.reaper, self.fork = map(int, self.process.stdout.readline().split())
        self._fd = os.pidfd_open(self.reaper)
        assert len(self.cloud.left()) == 3

    @property
    def log(self) -> str:
        return (self.state / "reaper.log").read_text()

    def say_bye(self) -> None:
        """The driver goes on after its wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)

    def kill(self, number: int) -> None:
        os.kill(self.process.pid, number)
        self.process.wait(20)

    def await_reaper(self) -> None:
        assert select.select([self._fd], [], [], 20)[0], f"it still runs; {self.log}"

    def close(self) -> None:
        for pid in (self.process.pid, self.reaper, self.fork):
            if pid > 0:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        os.close(self._fd)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[[str], Drive]]:
    drives: list[Drive] = []

    def start(how: str = "dies") -> Drive:
        drives.append(Drive(tmp_path, how))
        return drives[-1]

    yield start
    for started in drives:
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_driver_leaves_nothing(drive: Callable[..., Drive], number: signal.Signals) -> None:
    driver = drive()
    driver.kill(number)
    driver.await_reaper()
    assert driver.cloud.left() == []
    ledger = Ledger(driver.state)
    assert ledger.pools() == []
    assert [entry.ended is None for entry in ledger.machines()] == [False, False]
    assert "nothing is left" in driver.log


@pytest.mark.slow
def test_a_driver_that_ends_without_a_word_leaves_nothing(drive: Callable[..., Drive]) -> None:
    """Its interpreter ended, perhaps by os._exit, and nobody gave the machines back."""
    driver = drive()
    driver.say_bye()
    driver.await_reaper()
    assert driver.cloud.left() == []


def test_after_an_orderly_end_it_does_nothing(drive: Callable[..., Drive]) -> None:
    """The driver waits for it, so that there is nothing to see of it afterwards."""
    driver = drive("orderly")
    driver.say_bye()
    driver.await_reaper()
    assert driver.process.returncode == 0
    assert driver.log == ""


def test_a_fork_of_the_driver_that_lives_on_changes_nothing(drive: Callable[..., Drive]) -> None:
    """It holds the same pipe to the reaper, which must not take that for the driver's life."""
    driver = drive("fork")
    driver.kill(signal.SIGKILL)
    driver.await_reaper()
    assert driver.cloud.left() == []
    os.kill(driver.fork, 0)


def test_a_terminal_that_ends_the_drivers_group_does_not_end_the_reaper(drive: Callable[..., Drive]) -> None:
    driver = drive()
    assert os.getsid(driver.reaper) != os.getsid(driver.process.pid)
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.await_reaper()
    assert driver.cloud.left() == []


def test_an_api_that_is_down_is_asked_until_it_answers(drive: Callable[..., Drive]) -> None:
    driver = drive()
    fault = Path(driver.cloud.folder) / "down"
    fault.touch()
    driver.kill(signal.SIGKILL)
    end = time.monotonic() + 20
    while "retrying" not in driver.log:
        assert time.monotonic() < end
        time.sleep(0.01)
    fault.unlink()
    driver.await_reaper()
    assert driver.cloud.left() == []


def test_only_its_user_reads_what_it_says(drive: Callable[..., Drive]) -> None:
    driver = drive()
    assert stat.S_IMODE((driver.state / "reaper.log").stat().st_mode) == 0o600


# --- moments ---


def message(pid: int, folder: Path, cloud: FolderCloud) -> bytes:
    head = json.dumps({"tag": "sky-1", "pid": pid, "folder": str(folder)}).encode()
    return b"".join(struct.pack("!I", len(part)) + part for part in (head, pickle.dumps([cloud])))


@pytest.fixture
def cloud(tmp_path: Path) -> FolderCloud:
    (tmp_path / "cloud").mkdir()
    made = FolderCloud(str(tmp_path / "cloud"))
    made.create(Order("sky-1", 1, Resources(), name="sky-1-1"))
    return made


def bare_reaper() -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-m", "skyward.core.machines.reaper"], stdin=subprocess.PIPE, env=env)


def test_a_driver_that_died_before_the_reaper_looked(cloud: FolderCloud, tmp_path: Path) -> None:
    """Even while a fork of it holds the pipe open."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    process = bare_reaper()
    assert process.stdin is not None
    process.stdin.write(message(dead.pid, tmp_path / "state", cloud))
    process.stdin.flush()
    assert process.wait(20) == 0
    process.stdin.close()
    assert cloud.left() == []


def test_a_driver_that_ended_orderly_before_the_reaper_looked(cloud: FolderCloud, tmp_path: Path) -> None:
    """All that it said arrives at once; the last word counts."""
    process = bare_reaper()
    process.communicate(message(os.getpid(), tmp_path / "state", cloud) + b"done", timeout=20)
    assert process.returncode == 0
    assert len(cloud.left()) == 2


@pytest.mark.parametrize("count", [0, 3, 20])
def test_a_driver_that_died_while_it_started_the_reaper(cloud: FolderCloud, tmp_path: Path, count: int) -> None:
    """It has bought nothing; the reaper ends silently."""
    process = bare_reaper()
    process.communicate(message(os.getpid(), tmp_path / "state", cloud)[:count], timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("said", ["half", "all"])
def test_a_driver_that_died_while_it_started_the_reaper_leaves_no_key(
    cloud: FolderCloud, tmp_path: Path, said: str
) -> None:
    ledger = Ledger(tmp_path / "state")
    key = ledger.open_pool("sky-1", [], make_key("sky-1"))
    words = message(os.getpid(), ledger.folder, cloud)
    read, write = os.pipe()
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "skyward.core.machines.reaper"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write, env=env)
    os.close(write)
    os.close(read)  # nobody hears that it is ready
    process.communicate(words if said == "all" else words[:-5], timeout=20)
    assert process.returncode == 0
    assert not key.exists()
    assert ledger.pools() == []


def test_a_machine_of_an_order_that_was_on_its_way(cloud: FolderCloud, tmp_path: Path) -> None:
    """The provider shows it only some moments after the driver's death."""
    (Path(cloud.folder) / "slow").write_text("0.4")
    cloud.create(Order("sky-1", 1, Resources(), name="sky-1-2"))
    reaper._clean_up("sky-1", tmp_path / "state", [cloud])
    assert cloud.left() == []


@pytest.mark.slow
def test_one_provider_that_fails_does_not_keep_the_others(
    cloud: FolderCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is tried again and again, up to a day; meanwhile the others are swept."""
    (tmp_path / "other").mkdir()
    other = FolderCloud(str(tmp_path / "other"))
    other.create(Order("sky-1", 1, Resources(), name="sky-1-2"))
    (Path(cloud.folder) / "locked").touch()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds > 1:
            pauses.append(seconds)
            eventually(lambda: other.left() == [])
            if len(pauses) == 10:
                (Path(cloud.folder) / "locked").unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    reaper._clean_up("sky-1", tmp_path / "state", [cloud, other])
    assert cloud.left() == []
    assert pauses[:3] == [5, 10, 20]
    assert max(pauses) == pauses[-1] == 600
    assert "AuthFailed: folder: the key was refused" in capsys.readouterr().out


class _Waiting(FolderCloud):
    """Its API answers only when the other cloud is empty."""

    other: FolderCloud

    def machines(self, tag: str) -> Sequence[Machine]:
        eventually(lambda: self.other.left() == [])
        return super().machines(tag)


def test_providers_are_swept_at_the_same_time(cloud: FolderCloud, tmp_path: Path) -> None:
    """A call that hangs costs nothing elsewhere."""
    (tmp_path / "slow").mkdir()
    slow = _Waiting(str(tmp_path / "slow"))
    object.__setattr__(slow, "other", cloud)
    Ledger(tmp_path / "state").open_pool("sky-1", [], make_key("sky-1"))
    reaper._clean_up("sky-1", tmp_path / "state", [slow, cloud])
    assert cloud.left() == []
    assert Ledger(tmp_path / "state").pools() == []


def test_a_machine_that_was_never_shown_keeps_the_pool_in_the_ledger(
    cloud: FolderCloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The credentials may be of another account by now."""
    ledger = Ledger(tmp_path / "state")
    ledger.open_pool("sky-1", [], make_key("sky-1"))
    elsewhere = Machine("m-7", None, "m-7", order="sky-1-7", tag="sky-1")
    ledger.made("folder", [*cloud.machines("sky-1"), elsewhere])
    reaper._clean_up("sky-1", tmp_path / "state", [cloud])
    assert cloud.left() == []
    assert "not listed by any provider: m-7 at folder" in capsys.readouterr().out
    assert [pool.tag for pool in ledger.pools()] == ["sky-1"]
    assert [entry.id for entry in ledger.machines() if entry.ended is None] == ["m-7"]


def test_it_stays_in_the_drivers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of credentials may be named relative to it; but modules that lie there are not for the reaper."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYWARD_STATE", "state")
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    (tmp_path / "near").mkdir()
    near = FolderCloud("near")
    near.create(Order("sky-1", 1, Resources(), name="sky-1-1"))
    process = reaper.start("sky-1", Ledger().folder, pickle.dumps([near]))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert near.left() == []


def test_it_is_ready_before_anything_is_bought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends before it has heard what to do is no reaper."""
    Ledger(tmp_path / "state")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(ProvisioningError, match=r"did not start"):
        reaper.start("sky-1", tmp_path / "state", b"x" * 10)


def test_it_gives_up_after_a_day_and_says_what_to_do(
    cloud: FolderCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(cloud.folder) / "locked").touch()
    Ledger(tmp_path / "state").open_pool("sky-1", [], make_key("sky-1"))
    monkeypatch.setattr(reaper, "_GIVE_UP", -1.0)
    reaper._clean_up("sky-1", tmp_path / "state", [cloud])
    assert "skyward down sky-1" in capsys.readouterr().out
    assert [pool.tag for pool in Ledger(tmp_path / "state").pools()] == ["sky-1"]


def test_no_reaper_no_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can't be started, nothing must be bought."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no such python"))
    with pytest.raises(ProvisioningError, match=r"did not start: .*no such python.*reaper\.log"):
        reaper.start("sky-1", tmp_path, b"")
