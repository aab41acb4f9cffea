"""Checks a built site: each link within it leads somewhere, anchors included, and nothing on it comes from elsewhere.

    python scripts/check_site.py build/docs/html

Sphinx checks what pages name; this checks what has become of it, in navigation, tables and generated pages too.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"img": "src", "script": "src", "source": "src", "link": "href", "iframe": "src"}
_LINKS = {"alternate", "author", "canonical", "next", "prev", "index", "search"}  # of <link>: these load nothing


class Page(HTMLParser):
    """The ids of a page, where it leads, and what a browser loads for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says."""
        values = {name: value for name, value in attrs if value}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in _LOADED and _LOADED[tag] in values and values.get("rel") not in _LINKS:
            self.loaded.add(values[_LOADED[tag]])


def faults(folder: Path) -> list[str]:
    """Return what is wrong, a line each."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(folder)} loads {link}")
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not goal.exists():
                found.append(f"{path.relative_to(folder)} leads to {link}, which is not there")
            elif parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].ids:
                found.append(f"{path.relative_to(folder)} leads to {link}, where nothing has that name")
    return found if pages else [f"there are no pages in {folder}"]


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]).resolve())
    raise SystemExit("\n".join(lines) or 0)
