"""Finds in source text what it imports, wherever the import stands, without running or parsing it.

Text that only looks like an import, in a docstring say, does no harm: only the user's own files count.
"""

from __future__ import annotations

import re

__all__ = ["imported"]

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
