"""What is downloaded, and to where: each file to a place of its own, and none over another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import DownloadFailed
from skyward.core.files.download_plan import Transfer, by_node, plan, rows

NAMES = st.text("ab/.", min_size=1, max_size=6)


def row(name: bytes, size: int = 3) -> tuple[bytes, bytes, int, int, bool]:
    return b"out/" + name, name, size, 7, False


def test_a_file_goes_below_the_folder() -> None:
    assert rows("n1", [list(row(b"deep/x"))], "here/") == [Transfer("n1", b"out/deep/x", "here/deep/x", 3, 7, False)]
    assert rows("n1", [row(b"x")], "here/{node}")[0].target == "here/n1/x"


@pytest.mark.parametrize(
    "listed",
    [
        None, 3, [1], [[b"p", b"n", 1, 1]], [row(b"../x")], [row(b"/etc/x")], [row(b"a/../../x")], [row(b"")],
        [row(b"a//b")],
        [row(b"x\0")], [(b"p", "x", 1, 1, False)], [(b"p", b"x", -1, 1, False)], [(b"p", b"x", 1.5, 1, False)],
        [(b"p", b"x", 1, 1, 1)], [("p", b"x", 1, 1, False)],
    ],
)  # fmt: skip
def test_what_a_node_lists_can_do_no_harm(listed: Any) -> None:
    """It may belong to anybody."""
    with pytest.raises(DownloadFailed, match="n1 sent a list of files that makes no sense"):
        rows("n1", listed, "here")


def chosen(*listed: tuple[str, str], to: str = "here", existing: tuple[str, ...] = (), overwrite: bool = False) -> Any:
    found = [each for node, name in listed for each in rows(node, [row(name.encode())], to)]
    return plan(found, "out/*", ["n1", "n2"], existing.__contains__, overwrite=overwrite)


def test_every_file_gets_a_place() -> None:
    assert [each.target for each in chosen(("n1", "a"), ("n2", "b"))] == ["here/a", "here/b"]
    assert [each.target for each in chosen(("n1", "a"), ("n2", "a"), to="here/{node}")] == ["here/n1/a", "here/n2/a"]
    assert len(chosen(("n1", "a"), existing=("here/a",), overwrite=True)) == 1


@pytest.mark.parametrize(
    ("listed", "existing", "says"),
    [
        ([], (), r"no file matches 'out/\*' on n1, n2"),
        ([("n1", "a"), ("n2", "a")], (), "here/a is on n1 and on n2.*to=.*{node}"),
        ([("n1", "a"), ("n2", "a/b")], (), "here/a is a file and a folder"),
        ([("n1", "a"), ("n1", "b")], ("here/b",), "already exist here: here/b. Remove them"),
        ([("n1", name) for name in "abcdefgh"], tuple(f"here/{name}" for name in "abcdefgh"), "here/e and 3 more"),
    ],
)
def test_what_cannot_be_is_said(listed: list[tuple[str, str]], existing: tuple[str, ...], says: str) -> None:
    with pytest.raises(DownloadFailed, match=says):
        chosen(*listed, existing=existing)


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2"]), NAMES), max_size=6))
def test_whatever_is_found_no_two_files_meet(listed: list[tuple[str, str]]) -> None:
    try:
        wanted = chosen(*listed)
    except DownloadFailed:
        return
    places = [each.target for each in wanted]
    assert len(set(places)) == len(places) == len(listed)
    assert all(place.startswith("here/") and ".." not in place.split("/") for place in places)
    assert not any(other.startswith(f"{place}/") for place in places for other in places)
    assert sorted(each for files in by_node(wanted).values() for each in files) == sorted(wanted)
