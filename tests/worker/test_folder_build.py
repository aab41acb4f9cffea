"""What is built is what the driver had, whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from skyward.core.files.cut import cut
from skyward.core.files.folder import scan
from skyward.core.protocol.manifest import CHUNK, Manifest
from skyward.worker import scratch
from skyward.worker.chunk_cache import ChunkCache
from skyward.worker.folder_build import build


def cached(source: Path, cache: Path) -> tuple[Manifest, ChunkCache]:
    """A folder's manifest, and its chunks as they would have arrived."""
    folder, chunks = scan(str(source)), ChunkCache(str(cache))
    manifest = folder.manifest()
    for name, pieces in zip(manifest.chunks, cut(folder.files), strict=True):
        fd, part = chunks.open(name)
        os.write(fd, folder.read(pieces))
        os.close(fd)
        Path(part).rename(chunks.path(name))
    return Manifest.unpack(manifest.pack()), chunks


def content(folder: Path) -> dict[bytes, object]:
    """All there is in a folder."""
    found: dict[bytes, object] = {}
    for here, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(here, name)
            status = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(folder))
            if stat.S_ISLNK(status.st_mode):
                found[key] = os.readlink(path)  # noqa: PTH115 - bytes
            elif stat.S_ISREG(status.st_mode):
                found[key] = Path(os.fsdecode(path)).read_bytes(), status.st_mtime_ns, bool(status.st_mode & 0o100)
            else:
                found[key] = None
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "a" / "hollow").mkdir(parents=True)
    (source / "a" / "large").write_bytes(os.urandom(2 * CHUNK + 5))
    (source / "a" / "same").write_bytes((source / "a" / "large").read_bytes())
    for number in range(50):
        (source / f"small{number}").write_bytes(b"%d" % number * number * 200)
    (source / os.fsdecode(b"odd \xff\n name")).write_text("odd")
    (source / "zz empty").touch()
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o700)
    (source / "a" / "link").symlink_to("../run")
    os.utime(source / "run", ns=(1, 123456789))
    return source


@pytest.mark.parametrize("writable", [False, True])
def test_a_folder_is_built_as_it_was(tmp_path: Path, source: Path, writable: bool) -> None:
    manifest, chunks = cached(source, tmp_path / "chunks")
    place = tmp_path / "work" / "deep" / "data"
    assert build(manifest, chunks.path, str(place), writable=writable) == []
    assert content(place) == content(source)
    assert [file.name for file in place.parent.iterdir()] == ["data"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (place, place / "a", place / "zz empty", place / "run")}
    assert modes == ({0o755, 0o644} if writable else {0o555, 0o444})
    scratch.remove(place)
    assert not place.exists()


def test_what_tasks_write_changes_neither_cache_nor_source(tmp_path: Path, source: Path) -> None:
    """Even what root writes into a folder that is only to be read."""
    manifest, chunks = cached(source, tmp_path / "chunks")
    for place in ("first", "second"):
        build(manifest, chunks.path, str(tmp_path / place), writable=True)
    before = content(source)
    with (tmp_path / "first" / "a" / "large").open("r+b") as file:
        file.write(b"changed")
    assert content(source) == content(tmp_path / "second") == before
    assert build(manifest, chunks.path, str(tmp_path / "third"), writable=False) == []


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size)), lambda path: os.truncate(path, 3)],
    ids=["gone", "other content", "short"],
)
def test_a_wrong_chunk_is_named_and_nothing_is_built(
    tmp_path: Path, source: Path, harm: Callable[[Path], object]
) -> None:
    manifest, chunks = cached(source, tmp_path / "chunks")
    harm(Path(chunks.path(manifest.chunks[1])))
    assert build(manifest, chunks.path, str(tmp_path / "work" / "data"), writable=False) == [
        name for name in manifest.chunks if name == manifest.chunks[1]
    ]
    assert list((tmp_path / "work").iterdir()) == []


def test_nothing_is_left_of_a_folder_that_cannot_be_built(tmp_path: Path, source: Path) -> None:
    manifest, chunks = cached(source, tmp_path / "chunks")

    def full(name: bytes) -> str:
        if name == manifest.chunks[-1]:
            raise OSError(28, "No space left on device")
        return chunks.path(name)

    with pytest.raises(OSError, match="No space left"):
        build(manifest, full, str(tmp_path / "work" / "data"), writable=False)
    assert list((tmp_path / "work").iterdir()) == []


def test_what_exists_is_not_replaced(tmp_path: Path, source: Path) -> None:
    manifest, chunks = cached(source, tmp_path / "chunks")
    (tmp_path / "data").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        build(manifest, chunks.path, str(tmp_path / "data"), writable=False)


def test_an_empty_folder_is_a_folder(tmp_path: Path) -> None:
    assert build(Manifest([], [], [], []), str, str(tmp_path / "data"), writable=True) == []
    assert list((tmp_path / "data").iterdir()) == []
