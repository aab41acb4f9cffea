"""The tree of errors: documented as it is, harmless on a terminal, and carried whole."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from skyward.core import errors
from skyward.core.errors import LinkError, PayloadError, PluginNotFound
from skyward.core.payload.exceptions import RemoteTraceback

ESC = "\x1b"
BAD = f"{ESC}]0;owned\x07{ESC}[2Jname\r\u202e\x9b1A"


@pytest.mark.parametrize("error", [LinkError(BAD), PayloadError(BAD), PluginNotFound(BAD), RemoteTraceback(BAD)])
def test_errors_are_shown_so(error):
    assert ESC not in str(error)
    assert r"\x1b[2J" in str(error)
    assert error.args == (BAD,)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each class once, below the class it derives from, with its other base."""
    rows = re.findall(r"^    ([ │├└─]*)(\w+)(?: \((\w+)\))?", inspect.getdoc(errors).partition("::")[2], re.MULTILINE)
    path: list[str] = []
    for indent, name, other in rows:
        path = [*path[: len(indent) // 4], name]
        kind = getattr(errors, name)
        bases = [base.__name__ for base in kind.__bases__]
        assert path[-2:-1] == bases[:1] or bases == ["Exception"]
        assert [other] == bases[1:] or not other
    assert sorted(name for _, name, _ in rows) == sorted(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_survives_pickling(name: str) -> None:
    """Errors cross processes inside joblib and multiprocessing."""
    error = getattr(errors, name)("what, where, what next")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
