"""The package's syntax trees: parsed once for all tests that read the source."""

from __future__ import annotations

import ast
import functools

__all__ = ["nodes", "parsed"]

parsed = functools.cache(ast.parse)


@functools.cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Return every node of a module's tree, in no particular order."""
    return tuple(ast.walk(parsed(source)))
