"""uv and Python on hosts that have neither and can't fetch them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from skyward.core.interfaces import CommandOutput
from skyward.core.nodes import host_tools
from skyward.core.nodes.host_tools import send_uv
from skyward.core.packages.fetch import Target
from skyward.core.packages.lists import driver_kind
from tests.core.nodes.test_bootstrap import CACHE, MINOR, boot, environments, index
from tests.wheels import wheels

__all__ = ["boot", "index", "wheels"]  # fixtures

pytestmark = pytest.mark.slow
MACHINE = os.uname().machine


def a_build(folder: Path) -> Path:
    """What uv has installed here: the running Python, without what no program needs."""
    base, build = Path(sys.base_prefix).resolve(), folder / f"cpython-{MINOR}.99-linux-{MACHINE}-gnu"
    (build / "bin").mkdir(parents=True)
    shutil.copy(base / f"bin/python{MINOR}", build / "bin")
    left_out = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "config-*", "idlelib", "lib2to3")
    shutil.copytree(base / f"lib/python{MINOR}", build / f"lib/python{MINOR}", symlinks=True, ignore=left_out)
    return build


@pytest.mark.lab
def test_uv_is_sent_once_to_a_host_that_has_none(boot, fresh_host, monkeypatch) -> None:
    monkeypatch.setattr(host_tools, "_PATIENCE", 60.0)  # this machine may be busy
    host = fresh_host()
    first = boot(host)
    assert {"sending uv", "making an environment with uv"} <= set(first.steps)
    assert "uv =" in host.run("sh", "-c", f"cat {CACHE}/envs/*/pyvenv.cfg").stdout
    host.run("sh", "-c", f"rm {CACHE}/envs/*/.complete", check=True)
    second = boot(host)
    assert second.built
    assert "sending uv" not in second.steps
    assert len(host.run("ls", "-A", f"{CACHE}/tools").stdout.split()) == 1


@pytest.mark.lab
def test_python_is_sent_to_a_host_that_has_none_and_no_internet(boot, fresh_host, tmp_path, monkeypatch) -> None:
    """With uv, which it does not have either; the second start makes nothing anew."""
    build = a_build(tmp_path / "pythons")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "pythons"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    libraries = list(Path(sys.base_prefix).resolve().glob(f"lib/libpython{MINOR}.so.*"))  # uv's own builds need none
    system = [str(folder) for folder in Path("/usr/lib").glob("*-linux-gnu")]
    host = fresh_host(pythons=(), files={f"{folder}/{path.name}": path for folder in system for path in libraries})
    first = boot(host)
    sent = [step for step in first.steps if step.startswith("sending")]
    assert sent == ["sending uv", f"sending {build.name}", "sending the code"]
    assert f"home = {CACHE}/pythons/{build.name}/bin" in host.run("sh", "-c", f"cat {CACHE}/envs/*/pyvenv.cfg").stdout
    assert boot(host).steps == ["inspecting the host"]
    assert len(environments(host)) == 1
    assert not [name for name in host.run("ls", "-A", f"{CACHE}/pythons").stdout.split() if name.startswith(".cpy")]


class SlowShell:
    """Takes a while for whatever is sent, or has no room for it."""

    def __init__(self, seconds: float = 0.0, room: int = 10**9) -> None:
        self.seconds, self.room = seconds, room
        self.files: dict[str, int] = {}
        self.ran: list[str] = []

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        self.ran.append(command)
        if "rm -f" in command:
            self.files.clear()
        return CommandOutput(0, "", "")

    async def put(self, data: bytes, path: str) -> None:
        await asyncio.sleep(self.seconds)
        if sum(self.files.values()) + len(data) > self.room:
            raise OSError("No space left on device")
        self.files[path] = len(data)


def sent(shell: SlowShell, *, needed: bool = False, system: str = driver_kind()) -> str:
    target = Target(MACHINE, 36, MINOR)
    return asyncio.run(
        send_uv(shell, "/r", target, system=system, driver=driver_kind(), needed=needed, on_step=lambda _: None)
    )


def test_uv_is_not_sent_where_that_would_take_longer_than_it_saves() -> None:
    assert sent(SlowShell()).startswith("/r/tools/uv-")
    slow = SlowShell(0.2)  # seconds for half a megabyte, of eighteen
    assert sent(slow) == ""
    assert slow.files == {}
    assert sent(SlowShell(0.2), needed=True).startswith("/r/tools/uv-")


def test_a_host_with_no_room_for_uv_or_of_another_kind_does_without() -> None:
    full = SlowShell(room=1_000_000)
    assert sent(full) == ""
    assert full.files == {}
    assert sent(SlowShell(), system="FreeBSD amd64") == ""
