"""Makes foreign text safe to show on a terminal.

Names of machines, messages of clouds and hosts, and the output of tasks may contain anything that a terminal obeys: a
new title, a cursor that moves back over earlier text, a query that the terminal answers as if typed. Pure.
"""

from __future__ import annotations

import functools
import re

__all__ = ["in_html", "in_json", "printed", "shown"]

# Control characters of seven and eight bits, those that change the writing direction or end a line (except "\n"), and
# lone surrogates, which no stream can encode.
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES = f"[{_CONTROL}]"
_IN_A_LINE = f"[{_CONTROL}\t\n]"

_ODD = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
_COLOUR = r"\x1b\[[0-9;:]{0,64}m"
_SEQUENCE = (
    r"(\x1b\[[0-9;:]{0,64}m)"  # a colour, which is kept
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\n\x07\x1b\x9c]*(?:\x07|\x9c|\x1b\\)?"  # a title, a device's command
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # a cursor's
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """When it is first needed: all of them take 2 ms of each process' start."""
    return re.compile(pattern)


def shown(text: str, *, lines: bool = True) -> str:
    r"""Escape control characters, as in ``\x1b``.

    Line ends and tabs are kept with `lines`; without, the result is one line.
    """
    return _compiled(_IN_LINES if lines else _IN_A_LINE).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode-escape").decode("ascii")


def in_html(text: str, *, lines: bool = True) -> str:
    """Escape control characters as `shown` does, and what HTML would take for its own."""
    from html import escape  # noqa: PLC0415 - 2 ms for a table of entities

    return escape(shown(text, lines=lines))


def in_json(text: str) -> str:
    """Escape control characters in JSON, without changing its values."""
    return _compiled(_IN_LINES).sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def printed(text: str) -> str:
    """Clean what a task printed: keep colours, tabs and carriage returns, and drop all other control sequences.

    A colour does not extend beyond the text.
    """
    if _compiled(_ODD).search(text) is None:
        return text
    clean = _compiled(_SEQUENCE).sub(lambda match: match[1] or "", text)
    *_, last = ("", *_compiled(_COLOUR).findall(clean))
    if last in ("", "\x1b[m", "\x1b[0m"):
        return clean
    body = clean.removesuffix("\n")
    return f"{body}\x1b[0m{clean[len(body) :]}"
