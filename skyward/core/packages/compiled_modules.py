"""What this machine has compiled of the modules that nodes import, so that these need not: see `compile_ahead`."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import struct
import sys
import threading
import zipfile
from pathlib import Path

__all__ = ["packed_modules"]

_SITES = ("site-packages", "dist-packages")
_packing = threading.Lock()  # held while an archive is made: others need the same one


def packed_modules(modules: tuple[str, ...]) -> bytes:
    """Return a zip with each module as the hash of its source and its code, which is the same on any platform.

    Parameters
    ----------
    modules
        Files, relative to ``site-packages``. Those that are not compiled here, or have changed since, are left out.
    """
    with _packing:
        return _pack(modules)


@functools.lru_cache(maxsize=1)
def _pack(modules: tuple[str, ...]) -> bytes:
    file = io.BytesIO()
    places = [place for place in sys.path if os.path.basename(place.rstrip("/")) in _SITES]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.comment = importlib.util.MAGIC_NUMBER
        for path in modules:
            source = next(filter(Path.is_file, (Path(place, path) for place in places)), None)
            if source is not None and (compiled := _compiled(source)) is not None:
                archive.writestr(path, compiled)
    return file.getvalue()


def _compiled(source: Path) -> bytes | None:
    """The hash of a source and what Python has compiled of it; None if that is not there, or of an earlier state."""
    try:
        data = Path(importlib.util.cache_from_source(str(source), optimization="")).read_bytes()
        state, text = source.stat(), source.read_bytes()
    except OSError:
        return None
    numbers = 0, int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", *numbers)
    return importlib.util.source_hash(text) + data[len(header) :] if data.startswith(header) else None
