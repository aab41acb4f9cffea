"""Builds the zip, importable by Python, with the part of this package that runs on nodes.

A node runs exactly the driver's code; nothing is downloaded by version. The zip holds sources, for tracebacks, and
compiled modules, since Python caches nothing for a zip: each process would compile them again when it starts.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
import struct
import sys
import zipfile
from pathlib import Path

__all__ = ["node_code", "node_code_name"]

_PACKAGE = Path(__file__).resolve().parents[2]

# joblib_ext and integrations: a task that itself calls Parallel looks the backend up by name.
_GLOBS = ("__init__.py", "plugins.py", "core/**/*.py", "worker/**/*.py", "joblib_ext/*.py", "integrations/*.py")

_UNCHECKED_HASH = 0b01  # flag of a .pyc file: validated by the hash of its source, which need not be checked on import
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold: its bytes must not depend on the time


@functools.cache
def _sources() -> dict[str, bytes]:
    files = {path for glob in _GLOBS for path in _PACKAGE.glob(glob)}
    return {f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes() for path in sorted(files)}


@functools.cache
def node_code_name() -> str:
    """Return the name of the zip: a hash of everything in it."""
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, source in _sources().items():
        digest.update(f"\n{name} {len(source)}\n".encode() + source)
    return f"{digest.hexdigest()[:20]}-{sys.implementation.cache_tag}.zip"


@functools.cache
def node_code() -> bytes:
    """Return the zip itself."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in _sources().items():
            header = importlib.util.MAGIC_NUMBER + struct.pack("<I", _UNCHECKED_HASH)
            compiled = marshal.dumps(compile(source, name, "exec", dont_inherit=True, optimize=0))
            for member, data in ((name, source), (f"{name}c", header + importlib.util.source_hash(source) + compiled)):
                archive.writestr(zipfile.ZipInfo(member, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()
