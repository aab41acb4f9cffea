"""Copies of the driver's results on a node: one for all, never an old one, and none where there is no room."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from skyward.core.whoami import KEPT
from skyward.joblib_ext import fetched_results
from skyward.joblib_ext.fetched_results import fetched

WHICH = ("here", "f", "0")


class Source:
    """A result of the driver's, and how often it was fetched."""

    def __init__(self) -> None:
        self.version, self.content, self.fetches = "1", b"first", 0
        self.error: BaseException | None = None

    def fetch(self, file: IO[bytes]) -> str | None:
        self.fetches += 1
        file.write(self.content)
        if self.error is not None:
            raise self.error
        return self.version

    def get(self, which: tuple[str, ...] = WHICH) -> bytes | None:
        with fetched(which, len(self.content), self.fetch, self.version) as file:
            return None if file is None else file.read()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(KEPT, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_a_result_is_fetched_once_for_all_threads(kept: Path) -> None:
    source, found = Source(), []
    threads = [threading.Thread(target=lambda: found.append(source.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"first"] * 8
    assert source.fetches == 1
    assert source.get(("here", "f", "1")) == b"first"
    assert source.fetches == 2
    assert len(list(kept.glob("*-*"))) == 2


def test_what_was_replaced_is_fetched_again(kept: Path) -> None:
    source = Source()
    source.get()
    source.version, source.content = "2", b"second"
    assert source.get() == b"second"
    assert source.fetches == 2
    assert len(list(kept.glob("*-*"))) == 1


def test_a_result_that_is_replaced_while_it_is_fetched_counts_as_the_newer(kept: Path) -> None:
    source = Source()

    def fetch(file: IO[bytes]) -> str | None:
        source.version, source.content = "2", b"second"
        return source.fetch(file)

    with fetched(WHICH, 5, fetch, "1") as file:
        assert file is not None
        assert file.read() == b"second"
    assert source.get() == b"second"
    assert source.fetches == 1


def test_what_is_gone_or_fails_leaves_nothing(kept: Path) -> None:
    with fetched(WHICH, 5, lambda _: None, "1") as file:
        assert file is None
    source = Source()
    source.error = OSError("disk full")
    assert source.get() is None
    source.error = EOFError()
    with pytest.raises(EOFError):
        source.get()
    assert {path.suffix for path in kept.iterdir()} == {".lock"}
    source.error = None
    assert source.get() == b"first"


def test_without_a_folder_there_are_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    kept.touch()
    assert Source().get() is None
    monkeypatch.delenv(KEPT)
    assert Source().get() is None
    assert list(tmp_path.iterdir()) == [kept]


def test_what_was_not_used_for_longest_makes_room(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what is being read."""
    room = fetched_results._MARGIN + 10  # two results

    def disk_usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=room - sum(path.stat().st_size for path in folder.glob("*-*")))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    source = Source()
    first, second, third, fourth = (("here", "f", str(number)) for number in range(4))
    assert [source.get(which) for which in (first, second, first, third)] == [b"first"] * 4
    assert source.fetches == 3, "the second one has gone"
    with fetched(first, 5, source.fetch, "1") as file, fetched(third, 5, source.fetch, "1"):
        assert source.fetches == 3
        assert source.get(fourth) is None, "both are being read"
        assert file is not None
    assert source.get(fourth) == b"first"
