"""uv for nodes: the program that this machine has, or for another kind of machine the one in its wheel."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path

from skyward.core.errors import PackagesFailed
from skyward.core.packages.fetch import Target, fetch

__all__ = ["packed_uv", "uv_here", "uv_name"]


def uv_name() -> str:
    """What the program is called on nodes, without their architecture: a version of ours, not one of theirs."""
    own = _distribution()
    return "uv-none" if own is None else f"uv-{own.version}"


def uv_here() -> str | None:
    """Path of the program of this environment; None if it is not there.

    Its module is not imported: the user's own may have that name.
    """
    own = _distribution()
    files = () if own is None else own.files or ()
    programs = [os.path.normpath(file.locate()) for file in files if file.name == "uv"]
    return next(filter(os.path.isfile, programs), None)


def _distribution() -> metadata.Distribution | None:
    """Ours, which is a requirement of skyward; None if skyward was installed without, or it was removed since."""
    try:
        return metadata.distribution("uv")
    except metadata.PackageNotFoundError:
        return None


def packed_uv(system: str, driver: str, target: Target, cache: Path | None = None) -> Path | None:
    """Return the program for a node, compressed by gzip; None if there is none for it.

    Parameters
    ----------
    system, driver
        Kinds of the node and of this machine, as ``uname -sm`` prints them.
    target
        The same for wheels.
    cache
        Folder in which it is kept; None for the user's.
    """
    if not system.startswith("Linux ") or not target.glibc or _distribution() is None:
        return None
    cache = user_cache_path("skyward") / "tools" if cache is None else cache
    packed = cache / f"{uv_name()}-{target.machine}.gz"
    if not packed.exists():
        with contextlib.ExitStack() as stack:
            source = _open(stack, target, own=system == driver)
            if source is None:
                return None
            cache.mkdir(parents=True, exist_ok=True)
            draft, name = tempfile.mkstemp(dir=cache)
            with os.fdopen(draft, "wb") as file, gzip.GzipFile("", "wb", 1, file, 0) as archive:
                shutil.copyfileobj(source, archive)
            Path(name).replace(packed)
    return packed


def _open(stack: contextlib.ExitStack, target: Target, *, own: bool) -> IO[bytes] | None:
    if own and (here := uv_here()) is not None:
        return stack.enter_context(Path(here).open("rb"))
    try:
        wheels = fetch([f"plain {uv_name().replace('-', '==')}"], target, resolve=False)
    except PackagesFailed:
        return None  # hosts that have pip need no uv
    return next(_in(stack, wheels), None)


def _in(stack: contextlib.ExitStack, wheels: list[Path]) -> Iterator[IO[bytes]]:
    for wheel in wheels:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
        for name in archive.namelist():
            if name.endswith(".data/scripts/uv"):
                yield stack.enter_context(archive.open(name))
