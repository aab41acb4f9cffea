"""Builds of Python that run wherever they are unpacked, for nodes that have none of the driver's minor version.

They are uv's: those that it has installed here for whatever purpose, or one that it fetches from where it is configured
to, for the node's kind of machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_cache_path

from skyward.core.errors import PythonNotFound
from skyward.core.packages.fetch import Target
from skyward.core.packages.uv_program import uv_here

__all__ = ["python_build"]

_LIMIT = 600.0  # seconds for one call of uv
_TAIL = 5  # lines of uv's output in an error
_LEFT_OUT = ("__pycache__", "site-packages")


def python_build(target: Target, cache: Path | None = None) -> Path:
    """Return an archive, as tar and gzip make them, whose one folder is called ``cpython-3.12.7-linux-x86_64-gnu``.

    Parameters
    ----------
    target
        The node.
    cache
        Folder in which builds are kept; None for the user's.

    Raises
    ------
    PythonNotFound
        There is none here and none can be fetched; the message ends with what uv says.
    """
    cache = user_cache_path("skyward") / "pythons" if cache is None else cache
    uv = uv_here()
    if uv is None:
        raise PythonNotFound("there is no uv on this machine to fetch one with (pip install uv)")
    if not target.glibc:
        raise PythonNotFound("uv's builds for the driver's kind of nodes need glibc, which the host does not have")
    pattern = f"cpython-{target.python}.*-linux-{target.machine}-gnu"
    found = _newest(Path(_run([uv, "python", "dir"]).strip()).glob(pattern)) or _newest(cache.glob(pattern))
    if found is None:
        cache.mkdir(parents=True, exist_ok=True)
        wanted = f"cpython-{target.python}-linux-{target.machine}-gnu"
        _run([uv, "python", "install", "--no-bin", "--install-dir", str(cache), wanted])
        found = _newest(cache.glob(pattern))
    if found is None:
        raise PythonNotFound(f"uv has installed no {pattern}")
    archive = cache / f"{found.name}.tar.gz"
    if not archive.exists():
        _pack(found, archive)
    return archive


def _newest(found: Iterable[Path]) -> Path | None:
    builds = [path for path in found if (path / "bin").is_dir()]
    return max(builds, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)


def _pack(build: Path, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=archive.parent)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as packed:
            packed.add(build, build.name, filter=_kept)
        Path(draft).replace(archive)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(draft).unlink()
        raise


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith(_LEFT_OUT) else entry


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise PythonNotFound(f"uv did not fetch one within {_LIMIT:g} s") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("warning")]
        raise PythonNotFound("uv can't fetch one:" + "".join(f"\n  {line}" for line in said[-_TAIL:]))
    return done.stdout
