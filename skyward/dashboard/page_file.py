"""The page as one file of HTML: what the server sends, and with a recording in it what `save_report` writes."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Html", "live_page", "report"]

_PARTS = ("1_text", "2_model", "3_look", "4_stream", "5_nodes", "6_panels", "7_page")


class Html(NamedTuple):
    """HTML, and the content security policy under which it works: nothing is loaded, and nothing else runs."""

    html: str
    policy: str


@cache
def _sources() -> tuple[str, str, str]:
    folder = files("skyward.dashboard") / "page"
    html, style = (folder.joinpath(name).read_text("utf-8") for name in ("page.html", "style.css"))
    script = "\n".join(folder.joinpath(f"{part}.js").read_text("utf-8") for part in _PARTS)
    return html, style, f'"use strict";\n(() => {{\n{script}}})();\n'


def live_page() -> Html:
    """Return the page that connects to the server it came from."""
    policy = f"{_policy()}; connect-src 'self'; frame-ancestors 'none'"
    return Html(_filled(policy="", recording=""), policy)


def report(message: str) -> str:
    """Return the text of a file that shows a message of `Feed.whole` and needs nothing else.

    Parameters
    ----------
    message
        The JSON. Anything that could end its HTML element is escaped.
    """
    meta = f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
    return _filled(meta, message.replace("<", "\\u003c"))


def _policy() -> str:
    _, style, script = _sources()
    allowed = f"style-src {_digest(style)}; script-src {_digest(script)}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _filled(policy: str, recording: str) -> str:
    html, style, script = _sources()
    for place, content in (
        ("<!-- policy -->", policy),
        ("/* style */", style),
        ("/* script */", script),
        ("/* recording */", recording),  # last, as it may contain anything
    ):
        before, _, after = html.partition(place)
        html = f"{before}{content}{after}"
    return html
