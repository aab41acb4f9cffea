"""What goes into an environment, as requirement files for a node's installers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit

from packaging.utils import canonicalize_name

from skyward.core import requirements
from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.packages.lists import PackageLists, Wheel

__all__ = ["environment_key", "place", "plain_hosts", "requirement_lists", "with_paths"]


def requirement_lists(image: Image, packages: PackageLists) -> bytes:
    """Return the lines of several requirement files, each line prefixed with its file's name.

    Requirements with hashes have a file of their own. What nodes themselves need is installed before it, so that its
    hashes need not be known; so are lines with exact versions, whose dependencies need not be found. Index addresses
    are in the files and not on a command line, since they may hold passwords. Wheels that are sent are named by their
    content, see `with_paths`; lines about the same distributions are left out.
    """
    indexes = [f"--index-url {image.index}"] if image.index is not None else []
    indexes += [f"--extra-index-url {index}" for index in image.extra_index]
    needed = [f"{name}=={importlib.metadata.version(name)}" for name in requirements.NEEDED]
    sent = {canonicalize_name(wheel.name) for wheel in packages.wheels}
    resolved = [line for line in packages.resolved if _name(line) not in sent]
    hashed = [line for line in resolved if requirements.has_hash(line)]
    options = [line for line in resolved if line.startswith("-") and line not in hashed]
    plain = [line for line in resolved if line not in hashed and line not in options]
    exact = [line for line in packages.exact if _name(line) not in sent]
    if not packages.exact:
        exact, plain = (needed, plain) if hashed else ([], [*needed, *plain])
    files = {
        "wheels": [f"{wheel.name}=={wheel.version} {wheel.content}" for wheel in packages.wheels],
        "exact": [*indexes, *options, *exact] if exact else [],
        "hashed": [*indexes, *options, *hashed] if hashed else [],
        "plain": [*indexes, *options, *plain] if plain else [],
        "constraints": [*(packages.exact or needed), *image.constraints],
    }
    for line in (line for lines in files.values() for line in lines):
        if "\n" in line or "\r" in line:
            raise ConfigError(f"Image: {line!r} contains a line break; give each address separately")
    return "".join(f"{name} {line}\n" for name, lines in files.items() for line in lines).encode()


def _name(line: str) -> str:
    """Normalized name of the distribution that a line is about; empty for an option."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return canonicalize_name(found[0]) if found else ""


def with_paths(lists: bytes, packages: PackageLists, folder: str) -> bytes:
    """Return the lists with the places of the wheels that were sent.

    Parameters
    ----------
    lists, packages
        See `requirement_lists`.
    folder
        Where on the node they are.
    """
    rest = [line for line in lists.splitlines(keepends=True) if not line.startswith(b"wheels ")]
    places = [f"wheels {one.name} @ file://{quote(place(one, folder))}\n".encode() for one in packages.wheels]
    return b"".join([*places, *rest])


def place(wheel: Wheel, folder: str) -> str:
    """Path on the node of a wheel that was sent; the path depends on its content."""
    return f"{folder}/{wheel.content[:20]}/{PurePosixPath(wheel.path).name}"


def environment_key(image: Image, lists: bytes, driver: str) -> str:
    """Return the name of an environment, to which the host adds its architecture and its interpreter.

    Passwords of indexes are left out: some change every hour, while the packages stay the same.

    Parameters
    ----------
    image
        The pool's.
    lists
        What `requirement_lists` says of it.
    driver
        Kind of machine on which exact versions need no resolution.
    """
    public = re.sub(rb"//[^/@\s]*@", b"//", lists)
    return hashlib.sha256(f"3 {image.python_version} {driver}\n".encode() + public).hexdigest()[:20]


def plain_hosts(image: Image) -> Sequence[str]:
    """Return the hosts of indexes without TLS, which pip wants named; whoever gave an http address accepts that."""
    addresses = [urlsplit(index) for index in (image.index, *image.extra_index) if index]
    return [address.netloc.rpartition("@")[2] for address in addresses if address.scheme == "http"]
