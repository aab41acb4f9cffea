"""Imports are found in source text, wherever they stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skyward
from skyward.core.packages.imports import imported, imports_of


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (b"import a", {"a"}),
        (b"import a.b.c as d, e as f\n", {"a", "e"}),
        (b"from a.b import (c,\n  d)", {"a"}),
        (b"def f():\n\tfrom a import b\n    import c\n", {"a", "c"}),
        (b"if x: import a; import b", {"a", "b"}),
        (b"try: from a import b\nexcept ImportError: import c", {"a", "c"}),
        (b"import a, \\\n    b", {"a", "b"}),
        (b'importlib.import_module("a.b")\n__import__("c")', {"a", "c"}),
        (b"from . import x\nfrom .y import z", set()),
        (b"important = 1\nfrom_a = 2\nx.import_a", set()),
        (b"# import a\nprint('import b')", set()),
        ("import café, a\nfrom größe.x import y".encode(), {"a", "café", "größe"}),
        (b"import caf\xe9, a\n\xff\xfe", {"a"}),
        (b"import a\r\nfrom b import c\r\n", {"a", "b"}),
        (b"", set()),
    ],
)
def test_forms_of_imports(source: bytes, names: set[str]) -> None:
    assert imported(source) == names


@pytest.mark.slow
def test_all_that_the_parser_finds_is_found() -> None:
    for file in Path(skyward.__file__).parent.rglob("*.py"):
        source = file.read_bytes()
        wanted = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                wanted |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted.add(node.module.split(".")[0])
        assert wanted <= imported(source), file


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted(source: bytes) -> None:
    assert all(name.isidentifier() for name in imported(source))


def test_relative_imports_beyond_the_top_are_passed_over() -> None:
    """They can't work."""
    assert set(imports_of("from ... import x\nfrom . import y", "a.b", is_package=False)) == {"a", "a.y"}
