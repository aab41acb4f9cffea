"""Includes pages from outside of docs, such as the changelog: docs contains a short page with a link for each of them.

That link is for readers without Sphinx.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

__all__ = ["setup"]

PAGES = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "hetzner": "contrib/skyward-hetzner/README.md",
}

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")


def replace(app: Sphinx, name: str, content: list[str]) -> None:
    """Insert the text of an outer page, and redirect links to outer pages to the pages in docs."""
    docs = Path(app.srcdir)
    goals = {(docs.parent / path).resolve(): docs / f"{page}.md" for page, path in PAGES.items()}
    source = Path(app.env.doc2path(name))
    here = source.parent
    if name in PAGES:
        source = docs.parent / PAGES[name]
        app.env.note_dependency(str(source))
        content[0] = source.read_text(encoding="utf-8")

    def moved(match: re.Match[str]) -> str:
        goal = (source.parent / match[1]).resolve()
        return os.path.relpath(goals.get(goal, goal), here) if goal.exists() else match[1]

    if source.suffix == ".md":
        content[0] = _LINK.sub(moved, content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it."""
    app.connect("source-read", replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
