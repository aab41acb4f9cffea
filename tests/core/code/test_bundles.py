"""An edit adds a bundle with what is new, and what no file needs is dropped."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.code.bundles import Bundles


def test_each_content_is_in_one_bundle() -> None:
    bundles = Bundles()
    assert bundles.missing([b"a", b"b", b"a"]) == [b"a", b"b"]
    assert bundles.add({b"a": 3, b"b": 0}) == 1
    assert bundles.missing([b"b", b"c", b"a"]) == [b"c"]
    assert bundles.add({b"c": 5}) == 2
    assert bundles.keep([b"a", b"c"]) == [1, 2]
    files = {"x.py": (b"a", False), "p/y.py": (b"a", True), "z": (b"c", False)}
    assert msgpack.unpackb(bundles.manifest(files, [1, 2])) == [
        [b"x.py", False, 0, 0, 3], [b"p/y.py", True, 0, 0, 3], [b"z", False, 1, 0, 5],
    ]  # fmt: skip
    assert bundles.keep([b"c"]) == [2]
    assert bundles.missing([b"a"]) == [b"a"], "its bundle was dropped"


def test_names_that_are_no_text() -> None:
    bundles = Bundles()
    bundles.add({b"a": 1})
    ((path, *_),) = msgpack.unpackb(bundles.manifest({"p/\udcff\n": (b"a", False)}, [1]))
    assert path == b"p/\xff\n"


@given(st.lists(st.dictionaries(st.sampled_from("pqrs"), st.binary(min_size=1, max_size=2), min_size=1), min_size=1))
def test_a_version_finds_all_its_contents(versions: list[dict[str, bytes]]) -> None:
    bundles, made = Bundles(), dict[int, bytes]()
    for version in versions:
        new = {content: content for content in bundles.missing(version.values())}
        if new:
            made[bundles.add({content: len(content) for content in new})] = b"".join(new)
        kept = bundles.keep(version.values())
        files = {path: (content, False) for path, content in version.items()}
        for path, _, bundle, offset, size in msgpack.unpackb(bundles.manifest(files, kept)):
            assert made[kept[bundle]][offset : offset + size] == version[path.decode()]
