"""Fetches wheels on the driver for a node that reaches no package index.

pip does it, given the node's platform. Each set of requirements is fetched once for each kind of machine, and stored in
the user's cache for the next pool.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from platformdirs import user_cache_path

from skyward.core.errors import PackagesFailed
from skyward.core.packages.closure import for_node
from skyward.core.packages.wheel_cache import remove_unused

__all__ = ["Target", "fetch", "pip_wheel"]

_LIMIT = 1800.0  # seconds for one call of pip
_OLDEST = 5  # manylinux_2_5 is the oldest there is
_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_FOR_INSTALLING = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER")  # variables that pip would take for its download
_TAIL = 5  # lines of pip's output in an error


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine that wheels are fetched for.

    Attributes
    ----------
    machine
        Its architecture, as ``uname -m`` prints it.
    glibc
        Minor version of its C library; 0 if that is another one.
    python
        Minor version of its Python, such as ``"3.12"``.
    """

    machine: str
    glibc: int
    python: str

    @property
    def options(self) -> list[str]:
        """The arguments for pip."""
        short = self.python.replace(".", "")
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        for abi in (f"cp{short}", "abi3", "none"):
            options += ["--abi", abi]
        for platform in self.platforms:
            options += ["--platform", platform]
        return options

    @property
    def platforms(self) -> list[str]:
        """Platform tags of wheels that it can use, the best first."""
        tags = []
        for minor in range(self.glibc, _OLDEST - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _NAMES:
                tags.append(f"{_NAMES[minor]}_{self.machine}")
        return [*tags, f"linux_{self.machine}"]


def fetch(lines: Sequence[str], target: Target, *, resolve: bool, cache: Path | None = None) -> list[Path]:
    """Fetch the wheels of what is to be installed, unless they are here already.

    Parameters
    ----------
    lines
        Lines of the requirement files of a node, each prefixed with its file's name; see `bootstrap`.
    target
        What the wheels are for.
    resolve
        Whether dependencies of exact versions have to be found.
    cache
        Folder in which sets of wheels are kept; None for the user's.

    Returns
    -------
    list of Path
        The wheels.

    Raises
    ------
    PackagesFailed
        They can't be fetched here, either; the message ends with what pip says.
    """
    cache = user_cache_path("skyward") / "wheels" if cache is None else cache
    key = hashlib.sha256(repr((sorted(lines), target, resolve)).encode()).hexdigest()[:20]
    folder = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with _turn(cache / f"{key}.lock"):
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _download(lines, target, folder, resolve=resolve)
        (folder / ".complete").touch()
        remove_unused(cache, ".complete")
        return sorted(folder.glob("*.whl"))


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Wait for other threads and programs that fetch the same."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(lines: Sequence[str], target: Target, folder: Path, *, resolve: bool) -> None:
    parts: dict[str, list[str]] = {}
    for line in lines:
        part, _, text = line.partition(" ")
        if part == "wheels":  # which are here
            continue
        parts.setdefault(part, []).append(text)
    node = for_node(target.machine)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(_for(parts.pop("constraints", []), node)))
    try:
        for part, texts in parts.items():
            wanted = folder / f"{part}.txt"
            wanted.write_text("\n".join(_for(texts, node)))
            deps = [] if resolve or part != "exact" else ["--no-deps"]
            options = [*target.options, *deps, "-d", str(folder), "-r", str(wanted), "-c", str(constraints)]
            _run([*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", *options])
    finally:
        for file in folder.glob("*.txt"):  # they may hold passwords of indexes
            file.unlink()


def _for(lines: Iterable[str], node: dict[str, str]) -> Iterator[str]:
    """Lines that hold for a node, without their markers: pip would evaluate them for this machine."""
    for line in lines:
        try:
            asked = Requirement(line)
        except InvalidRequirement:  # an option, or a requirement with options
            yield line
            continue
        if asked.marker is None or asked.marker.evaluate({**node, "extra": ""}):
            yield line.partition(";")[0].strip()


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    wheel = pip_wheel()
    if wheel is None:
        raise PackagesFailed("there is no pip here to fetch packages with: install it (python -m ensurepip)")
    return [sys.executable, str(wheel / "pip")]


def pip_wheel() -> Path | None:
    """Return the newest wheel of pip that this Python brings; None if the distribution has removed it."""
    folders = [Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled"), Path("/usr/share/python-wheels")]
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"), reverse=True)), None)


def _run(command: Sequence[str]) -> None:
    own = {name: value for name, value in os.environ.items() if name not in _FOR_INSTALLING}
    to = subprocess.STDOUT
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=to, text=True, timeout=_LIMIT, env=own, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PackagesFailed(f"pip did not fetch the packages within {_LIMIT:g} s") from error
    if done.returncode != 0:
        text = re.sub(r"//[^/@\s]*@", "//", done.stdout)  # passwords of indexes
        said = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise PackagesFailed("pip can't fetch the packages" + "".join(f"\n  {line}" for line in said[-_TAIL:]))
