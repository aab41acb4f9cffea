"""Which bundle holds which content: the first has all of it, later ones what an edit has added. Pure.

A bundle is the contents of several files one after another. Contents are known by their digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgpack

__all__ = ["Bundles", "InBundle"]


class InBundle(NamedTuple):
    """Where a content is: the number of its bundle, the offset there, and its size."""

    bundle: int
    offset: int
    size: int


class Bundles:
    """The bundles of one pool. Each has a number, and is dropped when none of its contents is needed any longer."""

    def __init__(self) -> None:
        self._places: dict[bytes, InBundle] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<Bundles, {len(self._places)} contents>"

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return those that no bundle has, each once, in order."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._places]

    def add(self, sizes: Mapping[bytes, int]) -> int:
        """Make a bundle of these contents, in order; return its number."""
        self._last += 1
        offset = 0
        for digest, size in sizes.items():
            self._places[digest] = InBundle(self._last, offset, size)
            offset += size
        return self._last

    def keep(self, digests: Iterable[bytes]) -> list[int]:
        """Drop the bundles that have none of these contents; return the numbers of the others."""
        kept = {self._places[digest].bundle for digest in digests}
        self._places = {digest: place for digest, place in self._places.items() if place.bundle in kept}
        return sorted(kept)

    def manifest(self, files: Mapping[str, tuple[bytes, bool]], bundles: list[int]) -> bytes:
        """Describe a version of the code, for the agent's `code_folders`.

        Parameters
        ----------
        files
            By path on nodes: the digest of the content, and whether the file is executable.
        bundles
            Numbers of the bundles, in the order in which the agent knows them.
        """
        index = {bundle: position for position, bundle in enumerate(bundles)}
        entries = []
        for path, (digest, executable) in files.items():
            bundle, offset, size = self._places[digest]
            entries.append([path.encode("utf-8", "surrogateescape"), executable, index[bundle], offset, size])
        packed: bytes = msgpack.packb(entries)
        return packed
