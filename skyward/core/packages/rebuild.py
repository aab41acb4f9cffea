"""Makes a wheel of an installed distribution again, from the list of its files: for what can't come from an index.

The files are taken as they are, also where somebody has edited them. What installers write by themselves is left out.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from skyward.core.errors import ConfigError
from skyward.core.packages.lists import Wheel
from skyward.core.packages.wheel_cache import remove_unused

__all__ = ["rebuild"]

_INSTALLERS = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same files make the same wheel


def rebuild(raw: metadata.Distribution, folder: Path) -> Wheel:
    """Make a wheel.

    Parameters
    ----------
    raw
        The distribution.
    folder
        Where the wheel is put; the same distribution gives the same file again.

    Raises
    ------
    ConfigError
        There is no list of its files, or one of them is missing.
    """
    name, version = raw.metadata["Name"], raw.version
    what = f"{name} {version}"
    record, about = raw.read_text("RECORD"), raw.read_text("WHEEL")
    if record is None or about is None:
        raise ConfigError(
            f"{what} was installed here from {_origin(raw)} and has no list of its files, so it can't be sent to "
            "nodes: install it here with pip or uv, or name another in sky.Image(pip=[...])"
        )
    tags = re.findall(r"^Tag:\s*(\S+)\s*$", about, re.MULTILINE)
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    files = dict(_files(raw, record, stem, what))
    info = next(
        (PurePosixPath(path).parts[0] for path in files if path.endswith(".dist-info/METADATA")), f"{stem}.dist-info"
    )
    lines = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in sorted(files.items())]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    content = hashlib.sha256(b"".join(path.encode() + data for path, data in sorted(files.items()))).hexdigest()
    place = folder / content[:20] / f"{stem}-{_joined(tags)}.whl"
    if place.exists():
        os.utime(place.parent)
    else:
        remove_unused(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
            for path, data in sorted(files.items()):
                wheel.writestr(zipfile.ZipInfo(path, _EPOCH), data, zipfile.ZIP_DEFLATED)
        draft.replace(place)
    return Wheel(name, version, str(place), content, all(tag.endswith("-any") for tag in tags))


def _origin(raw: metadata.Distribution) -> str:
    found = re.search(r'"url":\s*"([^"]*)"', raw.read_text("direct_url.json") or "")
    return re.sub(r"//[^/@\s]*@", "//", found[1]) if found else "an unknown place"


def _files(raw: metadata.Distribution, record: str, stem: str, what: str) -> Iterator[tuple[str, bytes]]:
    """Paths in the wheel, and contents."""
    scripts = {point.name for point in raw.entry_points if point.group in ("console_scripts", "gui_scripts")}
    for path, *_ in csv.reader(record.splitlines()):
        parts = PurePosixPath(path).parts
        if not parts or "__pycache__" in parts or path.endswith(".pyc"):
            continue
        if len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] in _INSTALLERS:
            continue
        if parts[0] == ".." or PurePosixPath(path).is_absolute():
            below = [part for part in parts if part != ".."]
            if len(below) > 1 and below[-2] in ("bin", "Scripts"):
                if below[-1] in scripts:
                    continue  # the installer makes it
                target = f"{stem}.data/scripts/{below[-1]}"
            elif PurePosixPath(path).is_absolute():
                continue
            else:
                target = f"{stem}.data/data/{'/'.join(below)}"
        else:
            target = path
        try:
            yield target, Path(str(raw.locate_file(path))).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{what} is to be sent to nodes as it is installed here, and {path} of it can't be read: {error}. "
                "Install it again"
            ) from error


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _joined(tags: list[str]) -> str:
    """The tags of a wheel's name: each of the three parts lists what it may be."""
    parts = [list(dict.fromkeys(part)) for part in zip(*(tag.split("-") for tag in tags), strict=False)]
    return "-".join(".".join(part) for part in parts) or "py3-none-any"
