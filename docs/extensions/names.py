"""Turns names of the API in the text of a page or a docstring into links to their pages.

`sky.Compute`, `Worker(concurrency=4)`, `pool.map` and `numpy.memmap` are written as plain code, which reads well
without Sphinx, too. In annotations, classes are linked by their public names.
"""

from __future__ import annotations

import re
from typing import Any

import reference
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.intersphinx import InventoryAdapter
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["setup"]

_NAME = re.compile(r"(?:(sky|skyward|pool)\.)?([A-Za-z_][\w.]*)(?:\(.*\))?")
_PREFIXES = {"sky": "skyward.", "skyward": "skyward.", "pool": "skyward.Compute.", None: ""}


class Names(SphinxPostTransform):
    """Text marked as code, or by single backticks in a docstring."""

    default_priority = 5  # before Sphinx resolves references

    def run(self, **_: Any) -> None:
        """Link the names that have a page."""
        objects = self.env.domains["py"].objects  # type: ignore[attr-defined]
        for kind in (nodes.literal, nodes.title_reference):
            for node in list(self.document.findall(kind)):
                self._link(node, objects)

    def _link(self, node: nodes.Element, objects: dict[str, Any]) -> None:
        literal = nodes.literal(node.rawsource, node.astext(), classes=["py"])
        address = None if _inside_a_link(node) else self._address(node.astext(), objects)
        if address is not None:
            node.replace_self(nodes.reference("", "", literal, internal=True, refuri=address, classes=["api"]))
        elif isinstance(node, nodes.title_reference):
            node.replace_self(literal)

    def _address(self, text: str, objects: dict[str, Any]) -> str | None:
        """The address of a name's page, unless that is the current page."""
        target = full_name(text, objects)
        if target is None:
            return _of_others(text, self.env)
        entry = objects[target]
        if entry.docname == self.env.docname:
            return None
        link = self.app.builder.get_relative_uri(self.env.docname, entry.docname)
        return link if entry.docname.endswith(f"/{target}") else f"{link}#{entry.node_id}"


def _inside_a_link(node: nodes.Node) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, (nodes.reference, pending_xref, nodes.title)):
            return True
        parent = parent.parent
    return False


def full_name(text: str, objects: dict[str, Any]) -> str | None:
    """Return the full name of the documented object that a piece of code names, or None."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    prefix, name = match.groups()
    if prefix is None and not name[0].isupper():
        return None
    candidates = [_PREFIXES[prefix] + name] if prefix else [f"skyward.{name}", *_elsewhere(name, objects)]
    return next((candidate for candidate in candidates if candidate in objects), None)


def _of_others(text: str, env: BuildEnvironment) -> str | None:
    """The address where Python, joblib, scikit-learn or numpy describe a name, if their inventories were fetched."""
    match = _NAME.fullmatch(text)
    if match is None or "." not in match[2] or match[1] is not None:
        return None
    inventory = InventoryAdapter(env).main_inventory
    kinds = [kind for kind in inventory if kind.startswith("py:")]
    return next((inventory[kind][match[2]].uri for kind in kinds if match[2] in inventory[kind]), None)


def _elsewhere(name: str, objects: dict[str, Any]) -> list[str]:
    found = [each for each in objects if each.endswith(f".{name}") and each.startswith("skyward.")]
    return found if len(found) == 1 else []


def public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | nodes.TextElement | None:
    """Resolve names that the code writes with the module of their definition, and leave internal ones as text."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    objects = env.domains["py"].objects  # type: ignore[attr-defined]
    name = reference.ALIASES.get(target, target)
    found = name if name in objects else full_name(name, objects)
    if found is None:
        return content if reference.is_internal(target) else None
    made = nodes.reference("", "", content, internal=True)
    made["refuri"] = f"{app.builder.get_relative_uri(env.docname, objects[found].docname)}#{objects[found].node_id}"
    return made


def readable(  # the arguments are Sphinx's
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Write a type alias within another type as its name; autodoc shows a ``TypeAliasForwardRef`` instead."""
    shown = [text and re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", text) for text in (signature, returned)]
    return shown[0], shown[1]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register them."""
    app.add_post_transform(Names)
    app.connect("missing-reference", public)
    app.connect("autodoc-process-signature", readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
