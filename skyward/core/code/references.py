"""Finds out whether a pickle refers to one of some modules, without loading it. Pure."""

from __future__ import annotations

import pickletools
from collections.abc import Collection

__all__ = ["refers"]

_BYTES = frozenset(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"))
_TEXT = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
_GET = frozenset(("BINGET", "LONG_BINGET"))


def refers(pickle: bytes, roots: Collection[str]) -> str | None:
    """Return the first of these top-level modules to which a pickle refers; None if it does not.

    Parameters
    ----------
    pickle
        A pickle of protocol 4 or later; functions in it may be pickles of their own.
    roots
        Names of modules.
    """
    suspects = {root for root in roots if root.encode() in pickle}
    return _search(pickle, suspects) if suspects else None


def _search(pickle: bytes, roots: Collection[str]) -> str | None:
    memo: list[object] = []
    last: list[object] = [None, None]  # values pushed before, the latest last
    imports_module = False
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
            if name == "MEMOIZE":
                memo.append(last[-1])
            elif name == "STACK_GLOBAL":
                module, attribute = last
                if isinstance(module, str) and (root := module.partition(".")[0]) in roots:
                    return root
                imports_module = attribute == "subimport"
                last = [last[-1], None]
            elif name in _TEXT or name in _GET:
                value = memo[argument] if name in _GET and isinstance(argument, int) else argument
                if imports_module and isinstance(value, str) and (root := value.partition(".")[0]) in roots:
                    return root
                imports_module = False
                last = [last[-1], value]
            elif name in _BYTES and isinstance(argument, bytes):
                if (found := refers(argument, roots)) is not None:
                    return found
                last = [last[-1], None]
            elif name != "FRAME":
                last = [last[-1], None]
    except (ValueError, IndexError):  # not a pickle
        return None
    return None
