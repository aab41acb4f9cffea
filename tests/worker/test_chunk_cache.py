"""Chunks stay while they are used, and go when nobody uses them or the disk is full."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from skyward.worker.chunk_cache import ChunkCache

DAY = 86400.0


def name(size: int, mark: int = 0) -> bytes:
    return size.to_bytes(8, "big") + bytes([mark]) * 16


def put(cache: ChunkCache, chunk: bytes, *, age: float = 0.0, content: bytes | None = None) -> Path:
    fd, part = cache.open(chunk)
    os.write(fd, bytes(int.from_bytes(chunk[:8], "big")) if content is None else content)
    os.close(fd)
    path = Path(part).rename(cache.path(chunk))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_chunk_is_found_once_it_is_whole(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path / "chunks"))
    assert cache.find([name(5)]) == set()
    fd, part = cache.open(name(5))
    assert cache.find([name(5)]) == set()
    os.write(fd, b"12345")
    os.close(fd)
    Path(part).rename(cache.path(name(5)))
    assert cache.find([name(5), name(6)]) == {name(5)}
    assert Path(cache.path(name(5))).stat().st_mode & 0o777 == 0o600


def test_a_chunk_of_another_size_is_none(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path))
    put(cache, name(5), content=b"1234")
    assert cache.find([name(5)]) == set()


def test_a_wrong_chunk_is_dropped(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path))
    put(cache, name(5))
    cache.drop(name(5))
    cache.drop(name(6))
    assert cache.find([name(5)]) == set()


def test_what_nobody_has_used_for_two_months_is_swept_once_a_day(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path))
    cache.sweep()
    old, used, new = (put(cache, name(5, mark), age=age) for mark, age in ((1, 61 * DAY), (2, 61 * DAY), (3, 59 * DAY)))
    _, part = cache.open(name(5, 4))
    os.utime(part, (0, 0))
    cache.sweep()
    assert old.exists(), "it was swept a moment ago"
    assert cache.find([name(5, 2)])
    os.utime(tmp_path / ".swept", (time.time() - 2 * DAY,) * 2)
    cache.sweep()
    assert [file.exists() for file in (old, used, new, Path(part))] == [False, True, True, False]


def test_sweeping_makes_no_folder(tmp_path: Path) -> None:
    ChunkCache(str(tmp_path / "chunks")).sweep()
    assert not (tmp_path / "chunks").exists()


def test_what_was_not_used_today_makes_room(tmp_path: Path) -> None:
    """The oldest first; what another pool may just be using stays."""
    cache = ChunkCache(str(tmp_path))
    oldest, old, recent = (put(cache, name(1 << 16, mark), age=age) for mark, age in ((1, 3 * DAY), (2, DAY), (3, 60)))
    assert cache.make_room(1) > 0
    assert oldest.exists()
    assert cache.make_room(1 << 60) < 1 << 60
    assert [file.exists() for file in (oldest, old, recent)] == [False, False, True]


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "chunks").touch()
    with pytest.raises(OSError, match="chunks"):
        ChunkCache(str(tmp_path / "chunks")).open(name(5))
