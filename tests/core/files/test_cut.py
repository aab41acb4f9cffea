"""Chunks are neither large nor many, and a small change makes few new ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.files.cut import cut
from skyward.core.protocol.manifest import CHUNK, FolderFile, pieces

SIZES = st.lists(st.integers(0, 3 * CHUNK) | st.integers(0, CHUNK // 20), max_size=60)


def files(sizes: list[int]) -> list[FolderFile]:
    return [FolderFile(b"folder/%05d" % at, size, False, 0) for at, size in enumerate(sizes)]


@given(SIZES)
def test_what_is_cut_here_is_read_there(sizes: list[int]) -> None:
    """A node knows the sizes of files and chunks only."""
    chunks = list(cut(files(sizes)))
    found = [sum(piece.size for piece in chunk) for chunk in chunks]
    assert list(pieces(files(sizes), found)) == chunks
    assert all(0 < size <= CHUNK for size in found)


@given(SIZES, st.data())
def test_a_file_that_is_added_changes_its_own_chunk_only(sizes: list[int], data: st.DataObject) -> None:
    before = files(sizes)
    path = data.draw(st.sampled_from([b"folder/%05d+" % at for at in range(len(sizes) + 1)]))
    after = sorted([*before, FolderFile(path, data.draw(st.integers(0, 3 * CHUNK)), False, 0)])

    def contents(listed: list[FolderFile]) -> set[tuple[tuple[bytes, int, int], ...]]:
        return {tuple((listed[file].path, at, size) for file, at, size in chunk) for chunk in cut(listed)}

    old, new = contents(before), contents(after)
    changed = [chunk for chunk in new - old if all(name != path for name, _, _ in chunk)]
    small = sum(file.size for file in after if file.size < CHUNK // 16)
    assert len(changed) <= 2 + small // CHUNK * 2, "the run that the new file divides, and where runs are full"


def test_many_small_files_share_chunks() -> None:
    """Ten thousand files of a kilobyte are some ten chunks, not ten thousand."""
    assert 3 <= len(list(cut(files([1000] * 10_000)))) <= 40


def test_a_large_file_that_grows_keeps_its_first_chunks() -> None:
    before = list(cut(files([5, 3 * CHUNK, 5])))
    after = list(cut(files([5, 3 * CHUNK + 1, 5])))
    assert before[:4] == after[:4]
