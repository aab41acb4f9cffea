"""Writes llms.txt, a list of the pages for language models, each with its first sentence, in the order of contents."""

from __future__ import annotations

import re
from pathlib import Path

import outside
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

__all__ = ["setup"]


def _says_something(paragraph: nodes.paragraph) -> bool:
    """Whether Sphinx did not add it, as it adds notes to a gallery and bases to a class."""
    return not isinstance(paragraph.parent, nodes.Admonition) and not paragraph.astext().startswith("Bases: ")


def _first_sentence(app: Sphinx, name: str) -> str:
    paragraph = next(filter(_says_something, app.env.get_doctree(name).findall(nodes.paragraph)), None)
    if paragraph is None:
        return ""
    first = paragraph[0]
    is_heading = isinstance(first, nodes.strong) and first.astext().endswith((".", "?"))
    text = "".join(part.astext() for part in (paragraph.children[1:] if is_heading else paragraph))
    return re.split(r"(?<=[.!?])\s", re.sub(r"\s+", " ", text).strip(), maxsplit=1)[0].rstrip(":")


def _line(app: Sphinx, name: str) -> str:
    source = app.env.doc2path(name, base=False)
    written = source.suffix == ".md" and name not in outside.PAGES  # the source of other pages is generated
    address = f"_sources/{source}" if written else f"{name}.html"
    what = _first_sentence(app, name)
    return f"- [{app.env.titles[name].astext()}]({address})" + (f": {what}" if what else "")


def _below(app: Sphinx, name: str) -> list[str]:
    """The pages below one, in order, at all levels."""
    found: list[str] = []
    for tree in app.env.get_doctree(name).findall(addnodes.toctree):
        for _, entry in tree["entries"]:
            if entry in app.env.titles:
                found += [entry, *_below(app, entry)]
    return found


def write(app: Sphinx, error: Exception | None) -> None:
    """Write llms.txt beside the pages."""
    if error is not None or app.builder.name != "html":
        return
    start = app.config.root_doc
    lines = [f"# {app.env.titles[start].astext()}", "", f"> {_first_sentence(app, start)}", ""]
    for tree in app.env.get_doctree(start).findall(addnodes.toctree):
        for _, section in tree["entries"]:
            pages = [section, *_below(app, section)]
            lines += [f"## {app.env.titles[section].astext()}", "", *(_line(app, page) for page in pages), ""]
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
