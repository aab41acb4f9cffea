"""What is to be installed, as one value."""

from __future__ import annotations

from skyward.core.packages.lists import PackageLists

ALL = ("a==1", "b==2", "c==3")


def test_what_nobody_named_can_be_left_out() -> None:
    lists = PackageLists(ALL, ("d",), modules=("a.py",), named=PackageLists(("b==2",)))
    assert lists.without(["a==1"]) == PackageLists(ALL[1:], ("d",), modules=("a.py",), named=PackageLists(("b==2",)))
    assert lists.without(["a==1", "b==2"]) is None, "b was asked for"
    assert lists.without(["a==1", "d"]) is None, "the installer has to find out what d is"
    assert lists.without([]) is None
    assert PackageLists(ALL).without(["a==1"]) is None, "all of them were asked for"
