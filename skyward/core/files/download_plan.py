"""Decides which files of the nodes are downloaded, and to where; refuses what would overwrite anything. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from skyward.core.errors import DownloadFailed

__all__ = ["Transfer", "by_node", "plan", "rows"]

_NODE = "{node}"
_SHOWN = 5  # names in an error


class Transfer(NamedTuple):
    """A file on its way: from `path` on `node` to `target` here."""

    node: str
    path: bytes
    target: str
    size: int
    changed: int
    runs: bool


def rows(node: str, listed: Any, to: str) -> list[Transfer]:
    """Read what a node has listed, which may be anything.

    Parameters
    ----------
    node, listed
        The node, and its list.
    to
        Where the files are to go; ``{node}`` stands for the node's name.

    Raises
    ------
    DownloadFailed
        It is not a list of files, or one of them would be outside the folder.
    """
    found = []
    try:
        for path, name, size, changed, runs in listed:
            whole = all(type(value) is int and value >= 0 for value in (size, changed)) and type(runs) is bool
            parts = name.split(b"/")
            if (
                not whole
                or type(path) is not bytes
                or any(part in (b"", b".", b"..") for part in parts)
                or b"\0" in name
            ):
                raise ValueError("a file that can't be")
            target = posixpath.join(to.replace(_NODE, node), name.decode("utf-8", "surrogateescape"))
            found.append(Transfer(node, path, target, size, changed, runs))
    except (TypeError, ValueError, AttributeError) as error:
        raise DownloadFailed(f"{node} sent a list of files that makes no sense: {error}") from error
    return found


def plan(
    transfers: Sequence[Transfer], pattern: str, nodes: Sequence[str], exists: Callable[[str], bool], *, overwrite: bool
) -> list[Transfer]:
    """Check that each file gets a place of its own.

    Parameters
    ----------
    transfers
        What was found.
    pattern, nodes
        The pattern, and where it was looked for; for messages.
    exists
        Whether there is something at a path here.
    overwrite
        Whether files here may be replaced.

    Raises
    ------
    DownloadFailed
        There is nothing to download, or names clash.
    """
    if not transfers:
        raise DownloadFailed(
            f"no file matches {pattern!r} on {', '.join(nodes)}. A relative pattern applies in the tasks' working "
            "directory"
        )
    places: dict[str, Transfer] = {}
    clashes = []
    for transfer in transfers:
        if (other := places.setdefault(posixpath.normpath(transfer.target), transfer)) is not transfer:
            clashes.append(f"{transfer.target} is on {other.node} and on {transfer.node}")
    clashes += [f"{up} is a file and a folder" for place in places for up in _above(place) if up in places]
    if clashes:
        raise DownloadFailed(
            f"names clash, so nothing was downloaded: {_some(clashes)}. Let tasks name files differently, or give each "
            'node a folder: to="out/{node}"'
        )
    if not overwrite and (old := [place for place in places if exists(place)]):
        raise DownloadFailed(
            f"nothing was downloaded: these already exist here: {_some(old)}. Remove them, or write overwrite=True"
        )
    return list(transfers)


def by_node(transfers: Sequence[Transfer]) -> Mapping[str, list[Transfer]]:
    """Group files by the node that has them."""
    found: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        found.setdefault(transfer.node, []).append(transfer)
    return found


def _above(place: str) -> list[str]:
    above = []
    while (parent := posixpath.dirname(place)) and parent != place:
        above.append(parent)
        place = parent
    return above


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
