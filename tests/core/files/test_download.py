"""Files of nodes come home whole, or nothing changes here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import DownloadFailed
from skyward.core.files.download import download
from skyward.core.protocol import messages
from tests.core.files.near_node import NearNode, in_loop
from tests.core.files.test_supply import Driver

pytestmark = pytest.mark.slow


class Home:
    """Two nodes, and a folder here."""

    def __init__(self, tmp_path: Path) -> None:
        self.driver = Driver()
        self.here = tmp_path / "here"
        self.nodes = {name: self.driver.node(name, tmp_path / name) for name in ("n1", "n2")}
        self.said: list[str] = []
        self.spoke = asyncio.Event()

    def put(self, node: str, name: str, content: bytes = b"content") -> Path:
        path = self.nodes[node].work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.spoke.set()

    async def fetch(self, pattern: str = "out/*", to: str | None = None, *, overwrite: bool = False) -> list[Path]:
        nodes: Any = self.nodes
        place = str(self.here) if to is None else to
        return await download(self.driver.requests, nodes, pattern, place, overwrite=overwrite, report=self._say)

    def found(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.here)): path.read_bytes() for path in self.here.rglob("*") if path.is_file()}


@in_loop
async def test_files_of_all_nodes_come_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    large = os.urandom(20 * 1024 * 1024 + 3)
    home.put("n1", "out/large", large)
    program = home.put("n1", "out/deep/run", b"#!")
    program.chmod(0o700)
    os.utime(program, ns=(5, 123456789))
    home.put("n2", "out/empty", b"")
    home.put("n2", "else/x")
    paths = await home.fetch("out/**")
    assert sorted(paths) == [home.here / "deep" / "run", home.here / "empty", home.here / "large"]
    assert home.found() == {"large": large, "deep/run": b"#!", "empty": b""}
    assert (home.here / "deep" / "run").stat().st_mtime_ns == 123456789
    assert (home.here / "deep" / "run").stat().st_mode & 0o100
    assert not (home.here / "empty").stat().st_mode & 0o100


@in_loop
async def test_clashes_change_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.put("n1", "out/x", b"1")
    home.put("n2", "out/x", b"2")
    home.put("n2", "out/y", b"2")
    with pytest.raises(DownloadFailed, match="x is on n1 and on n2"):
        await home.fetch()
    assert not home.here.exists()
    await home.fetch(to=f"{home.here}/{{node}}")
    assert home.found() == {"n1/x": b"1", "n2/x": b"2", "n2/y": b"2"}
    (home.nodes["n1"].work / "out" / "x").unlink()
    (home.here / "y").write_bytes(b"mine")
    with pytest.raises(DownloadFailed, match=r"already exist here: .*/y"):
        await home.fetch()
    assert not (home.here / "x").exists()
    await home.fetch(overwrite=True)
    assert (home.here / "y").read_bytes() == b"2"


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_grow, "out/x has changed while it was being read"),
        (Path.unlink, "No such file or directory: .*out/x"),
        (None, "n1 was lost: unplugged"),
    ],
)
def test_what_goes_wrong_leaves_nothing(tmp_path: Path, harm: Callable[[Path], None] | None, says: str) -> None:
    @in_loop
    async def test(tmp_path: Path) -> None:
        home = Home(tmp_path)
        path = home.put("n1", "out/x", os.urandom(12 * 1024 * 1024))
        home.put("n2", "out/z")
        node: NearNode = home.nodes["n1"]
        reads = []

        def at_fifth(message: messages.Message) -> None:
            if isinstance(message, messages.Read):
                reads.append(message)
                if len(reads) == 5:
                    harm(path) if harm is not None else node.lose()

        node.harm = at_fifth
        with pytest.raises(DownloadFailed, match=says):
            await home.fetch()
        assert home.found() == {}

    test(tmp_path)


@in_loop
async def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.put("n1", "out/x")
    home.here.touch()
    with pytest.raises(DownloadFailed, match=r"File exists: .*here"):
        await home.fetch()


@in_loop
async def test_a_file_that_is_at_its_place_already_is_not_fetched(tmp_path: Path) -> None:
    """Where tasks run in the driver's own folder."""
    home = Home(tmp_path)
    path = home.put("n1", "out/x")
    home.nodes.pop("n2")
    assert await home.fetch(str(path.parent / "*"), str(path.parent)) == [path]
    assert not any(isinstance(message, messages.Read) for message in home.nodes["n1"].sent)


@in_loop
async def test_progress_is_reported_after_two_seconds(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.put("n1", "out/x", bytes(3_000_000))
    node: NearNode = home.nodes["n1"]
    take, held = node._take, []

    def hold(message: Any, buffers: Any) -> None:
        held.append((message, buffers)) if isinstance(message, messages.Read) else take(message, buffers)

    node._take = hold  # type: ignore[method-assign]
    fetching = asyncio.create_task(home.fetch())
    await home.spoke.wait()
    assert home.said == ["downloading: 0 of 3 MB"]
    for message, buffers in held:
        take(message, buffers)
    await fetching
    assert home.found() == {"x": bytes(3_000_000)}
