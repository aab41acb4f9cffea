"""A manifest survives its journey, adds up, and can't name anything outside its folder."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.protocol.manifest import CHUNK, FolderFile, FolderLink, Manifest, Piece, chunk_size, pieces

HASH = bytes(16)
SIZES = st.lists(st.integers(0, 40), max_size=12)


def name(size: int, content: bytes = HASH) -> bytes:
    return size.to_bytes(8, "big") + content


def files(sizes: list[int]) -> list[FolderFile]:
    return [FolderFile(b"%05d" % at, size, False, 0) for at, size in enumerate(sizes)]


@given(sizes=SIZES, cuts=st.lists(st.integers(1, 20), min_size=1))
def test_pieces_cover_every_byte_of_every_file_once_and_in_order(sizes: list[int], cuts: list[int]) -> None:
    left, chunks = sum(sizes), []
    while left:
        chunks.append(min(left, cuts[len(chunks) % len(cuts)]))
        left -= chunks[-1]
    found = list(pieces(files(sizes), chunks))
    assert [sum(piece.size for piece in chunk) for chunk in found] == chunks
    covered = [(piece.file, piece.offset + at) for chunk in found for piece in chunk for at in range(piece.size)]
    assert covered == [(file, at) for file, size in enumerate(sizes) for at in range(size)]
    assert all(piece.size for chunk in found for piece in chunk)


@given(sizes=SIZES, change=st.integers(-5, 5).filter(bool))
def test_sizes_that_do_not_add_up_are_refused(sizes: list[int], change: int) -> None:
    wrong = sum(sizes) + change
    if wrong >= 0:
        with pytest.raises(ValueError, match="more"):
            list(pieces(files(sizes), [wrong] if wrong else []))


def test_a_manifest_survives_its_journey() -> None:
    manifest = Manifest(
        [b"a", b"a/\xff odd\nname"],
        [FolderFile(b"a/\xff odd\nname/x", 5, True, 12345678901234567), FolderFile(b"empty", 0, False, 0)],
        [FolderLink(b"a/l", b"../empty")],
        [name(5)],
    )
    assert Manifest.unpack(manifest.pack()) == manifest
    assert manifest.size == 5
    assert chunk_size(manifest.chunks[0]) == 5


@pytest.mark.parametrize("path", [b"..", b"../x", b"/x", b"a/../x", b"a//x", b"", b"x\0", b"./x", b"b/x", b"a/x/y"])
def test_no_path_leads_out_of_the_folder(path: bytes) -> None:
    """Nor through a file, or into a folder that is not listed."""
    for bad in (
        Manifest([b"a"], [FolderFile(b"a/x", 0, False, 0), FolderFile(path, 0, False, 0)], [], []),
        Manifest([b"a"], [], [FolderLink(path, b"a")], []),
        Manifest([b"a", path], [], [], []),
    ):
        with pytest.raises(ValueError, match="not a manifest"):
            Manifest.unpack(bad.pack())


def test_a_path_is_named_once() -> None:
    """As a link and a file of the same name, the file would be written to wherever the link leads."""
    twice = Manifest([], [FolderFile(b"x", 0, False, 0)], [FolderLink(b"x", b"y")], [])
    with pytest.raises(ValueError, match="not in its folder"):
        Manifest.unpack(twice.pack())


@pytest.mark.parametrize("target", [b"/etc", b"..", b"../../x", b"", b"a/../../../x", b"x\0"])
def test_no_link_leads_out_of_the_folder(target: bytes) -> None:
    bad = Manifest([b"a"], [], [FolderLink(b"x", target) if target == b".." else FolderLink(b"a/x", target)], [])
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.unpack(bad.pack())


@given(st.binary(max_size=60))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.unpack(data)


@given(st.recursive(st.none() | st.integers() | st.binary(max_size=8) | st.text(max_size=4), st.lists, max_leaves=12))
def test_well_formed_garbage_is_refused(value: object) -> None:
    """Whatever the parts are: nothing but ValueError."""
    for packed in (
        value,
        [1, value, [], [], b""],
        [1, [], value, [], b""],
        [1, [], [], value, b""],
        [1, [], [], [], value],
    ):
        try:
            data = msgpack.packb(packed)
        except (OverflowError, ValueError):
            continue
        try:
            manifest = Manifest.unpack(data)
        except ValueError:
            continue
        assert not manifest.files
        assert not manifest.chunks


@pytest.mark.parametrize("size", [0, CHUNK + 1, 2**63])
def test_chunks_have_a_possible_size(size: int) -> None:
    bad = Manifest([], [FolderFile(b"x", size, False, 0)], [], [name(size)])
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.unpack(bad.pack())


def test_a_piece_says_where_it_is() -> None:
    assert list(pieces(files([3, 0, 4]), [5, 2])) == [[Piece(0, 0, 3), Piece(2, 0, 2)], [Piece(2, 2, 2)]]
