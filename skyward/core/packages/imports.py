"""What a program imports, wherever the import stands: of a text, a parsed text, or compiled code. Runs none of it.

`imported` does not parse, which takes a tenth of the time, and looks at all of the user's files again after each edit.
Text that only looks like an import, in a docstring say, does no harm there: only the user's own files count. What
decides which packages are installed parses, since there a wrong name may be gigabytes.
"""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Iterator
from types import CodeType

__all__ = ["imported", "imports_of", "imports_of_code"]

_IMPORT = re.compile(
    rb"""(?:^|[;:])[ \t]*(?:
        from[ \t]+([A-Za-z_\x80-\xff][\w\x80-\xff]*)[\w\x80-\xff.]*[ \t]+import\b
      | import[ \t]+((?:[\w\x80-\xff. \t,]|\\\r?\n)+)
    )""",
    re.MULTILINE | re.VERBOSE,
)
_BY_NAME = re.compile(rb"""(?:import_module|__import__)\(\s*["']([A-Za-z_]\w*)""")
_SPACE = re.compile(rb"\\\r?\n")


def imported(source: bytes) -> frozenset[str]:
    """Return the top-level modules that a source imports.

    Parameters
    ----------
    source
        Its text, in UTF-8; of another encoding that contains ASCII, only names in ASCII are found.
    """
    names = set(_BY_NAME.findall(source))
    for first, several in _IMPORT.findall(source):
        if first:
            names.add(first)
        for part in _SPACE.sub(b" ", several).split(b","):
            names.add(part.strip().split(b" ")[0].split(b".")[0])
    return frozenset(text for name in names if (text := name.decode("utf-8", "replace")).isidentifier())


def imports_of(source: bytes | str, name: str, *, is_package: bool) -> Iterator[str]:
    """What a module imports, at any depth, except for type checkers only.

    Parameters
    ----------
    source, name
        Its source and full name.
    is_package
        Whether it is a package's ``__init__``.

    Yields
    ------
    str
        Full names; of ``from a import b`` both ``a`` and ``a.b``, since ``b`` may be a module.
    """
    package = name if is_package else name.rpartition(".")[0]
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _of_from(node, package)
        elif isinstance(node, ast.Call) and (text := _imported_by_call(node)):
            yield text
        todo += ast.iter_child_nodes(node)


def _of_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parts = package.split(".") if package else []
        if node.level - 1 >= len(parts):
            return
        above = parts[: len(parts) - (node.level - 1)]
        base = ".".join([*above, *([base] if base else [])])
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _imported_by_call(node: ast.Call) -> str:
    """The module in ``importlib.import_module("a.b")`` and the like; empty for other calls."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in ("import_module", "__import__", "importorskip") or not node.args:
        return ""
    text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
    return text if isinstance(text, str) and not text.startswith(".") else ""


def imports_of_code(code: CodeType) -> Iterator[str]:
    """What compiled code, and code nested in it, imports: full names, empty for the package that it is in.

    Parameters
    ----------
    code
        A function's, say.
    """
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME" and isinstance(step.argval, str):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from imports_of_code(constant)
