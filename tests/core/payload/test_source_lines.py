"""Tracebacks of functions that were sent by value show their lines, and never wrong ones."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from skyward.core.payload import exceptions, source_lines
from skyward.core.payload.exceptions import RemoteTraceback

CELL = """
def helper(x):
    return 1 / x

def task(x):
    z = 3
    return helper(x) + z
"""

Cell = Callable[..., dict[str, Any]]


@pytest.fixture
def cell() -> Iterator[Cell]:
    """Runs source as a notebook runs a cell."""
    names = set()

    def run(source: str, name: str = "<cell>") -> dict[str, Any]:
        source = textwrap.dedent(source)
        names.add(name)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, name, "exec"), namespace)
        return namespace

    yield run
    for name in names:
        linecache.cache.pop(name, None)


def failure(function: Any, *args: Any, node_sees: str | None = None) -> bytes:
    """Send, run and answer as a node does that has another file under that name, or none."""
    sent = cloudpickle.loads(cloudpickle.dumps(function))
    here = dict(linecache.cache)
    linecache.cache.clear()
    if node_sees is not None:
        linecache.cache["<cell>"] = (len(node_sees), None, node_sees.splitlines(keepends=True), "<cell>")
    try:
        sent(*args)
    except Exception as error:
        (head,) = exceptions.dump(error)
        return head
    finally:
        linecache.cache.clear()
        linecache.cache.update(here)
    raise AssertionError("it did not fail")


def traceback(head: bytes) -> str:
    link: BaseException | None = exceptions.load(head)
    while link is not None and not isinstance(link, RemoteTraceback):
        link = link.__cause__
    assert link is not None
    return link.text


@pytest.mark.parametrize("node_sees", [None, "a\nb\nc\nd\ne\nf\ng\nh\n"], ids=["nothing", "another cell"])
def test_lines_of_a_cell_and_of_functions_it_calls(cell: Cell, node_sees: str | None) -> None:
    text = traceback(failure(cell(CELL)["task"], 0, node_sees=node_sees))
    lines = text.splitlines()
    for number, source in ((7, "return helper(x) + z"), (3, "return 1 / x")):
        index = next(i for i, line in enumerate(lines) if f'"<cell>", line {number},' in line)
        assert lines[index + 1] == f"    {source}"
        assert set(lines[index + 2]) == {" ", "^"}
    assert "b\n" not in text


def test_a_cell_of_the_same_name_shows_no_line_of_another(cell: Cell) -> None:
    """It was edited and run again while a task of the old one was running."""
    old = failure(cell(CELL)["task"], 0)
    cell(CELL.replace("1 / x", "2 / x"))
    assert "helper(x) + z" in traceback(old)  # the same as before
    assert "2 / x" not in traceback(old)
    for edited in (f"\n{CELL}", CELL.replace("z = 3", "z = 4"), CELL.replace("\n    z", "\n    #\n    z")):
        new = cell(edited)["task"]
        assert "helper(x) + z" not in traceback(old)
        assert "helper(x) + z" in traceback(failure(new, 0))


def test_causes_contexts_and_groups(cell: Cell) -> None:
    namespace = cell(
        """
        def first(): raise ValueError(1)
        def task(kind):
            try:
                first()
            except ValueError as error:
                if kind == "cause": raise KeyError(2) from error
                if kind == "context": raise KeyError(3)
                raise ExceptionGroup("several", [error, KeyError(4)])
        """
    )
    for kind in ("cause", "context", "group"):
        assert "def first(): raise ValueError(1)" in traceback(failure(namespace["task"], kind)), kind


def test_a_script_that_was_edited_since(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(CELL)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, str(script), "exec"), namespace)
    head = failure(namespace["task"], 0)
    assert "return 1 / x" in traceback(head)
    script.write_text(f"# a comment\n{CELL}")
    assert "return 1 / x" not in traceback(head)
    script.write_text("this is not Python")
    assert "Python" not in traceback(head)


def test_wide_characters_and_long_expressions(cell: Cell) -> None:
    namespace = cell(
        """
        def task(x):
            é = "日本"; return 1 / x
        def lines(x):
            return (1 /
                x)
        """
    )
    lines = traceback(failure(namespace["task"], 0)).splitlines()
    source = next(i for i, line in enumerate(lines) if "日本" in line)
    marks = lines[source + 1]
    assert lines[source][marks.index("^") : marks.rindex("^") + 1] == "1 / x"
    assert "return (1 /" in traceback(failure(namespace["lines"], 0))


def test_a_node_can_name_any_file(tmp_path: Path) -> None:
    """It is not read if that could take for ever, and what is read is shown only if it is that code."""
    secret = tmp_path / "secret"
    secret.write_text("x = 1\n")
    for file in ("/dev/zero", "/dev/stdin", str(tmp_path), str(secret), "", "\0", "/proc/kmsg"):
        text = f'Traceback\n  File "{file}", line 1, in <module>\nValueError'
        place = source_lines.SourcePlace(file, 1, "<module>", 1, b"guess", (0, 0))
        assert source_lines.fill(text, [place]) == text


def test_places_that_make_no_sense() -> None:
    good = ("f", 1, "n", 1, b"", (0, 0))
    assert source_lines.read_places([good]) == [source_lines.SourcePlace(*good)]  # type: ignore[arg-type]
    for bad in (None, {}, [None], [("f", "1", "n", 1, b"", (0, 0))], [good[:5]], [(*good[:5], (0,))], [good] * 101):
        assert source_lines.read_places(bad) == []


def test_endless_recursion(cell: Cell) -> None:
    text = traceback(failure(cell("\ndef task(x): return task(x)")["task"], 0))
    assert "Previous line repeated" in text
    assert "def task(x): return task(x)" in text
