"""Finds out which kinds of machines can't have what a pool's nodes need, before any is rented.

Machines like the driver's can: what is installed here from an index has a build for them, and so has what was built
here. For others, uv is asked what indexes have. If it can't tell, nothing is reported here: the node will report it.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable, Sequence

from skyward.core.image import Image
from skyward.core.packages.installer_settings import of_pip
from skyward.core.packages.lists import Lack, PackageLists
from skyward.core.packages.uv_program import uv_here

__all__ = ["Builds"]

_LIMIT = 60.0  # seconds for one question
_GLIBC = "manylinux_2_35"  # what the images of clouds have at least
_NO_BUILD = re.compile(r"(\S+) has no wheels with a matching platform tag")
_FOUND = re.compile(r"are available for .* on the following platforms?: ((?:`[^`]+`,? ?)+)")


class Builds:
    """The answers for one pool.

    Parameters
    ----------
    image
        What the pool's user has named, and the indexes.
    packages
        What nodes install.
    compiled
        Returns the names of the user's own modules that exist in compiled form only.
    """

    def __init__(self, image: Image, packages: PackageLists, compiled: Callable[[], Sequence[str]]) -> None:
        self._image = image
        self._packages = packages
        self._compiled = compiled
        self.lack = functools.cache(self._lack)  # one question for each architecture, whoever asks

    def __repr__(self) -> str:
        return f"<Builds for machines unlike {self._packages.driver}>"

    def _lack(self, machine: str) -> Lack | None:
        """What machines of an architecture lack; None if nothing is known. It may take seconds.

        Parameters
        ----------
        machine
            The architecture as ``uname -m`` prints it.
        """
        if self._packages.driver == f"Linux {machine}":
            return None
        if text := self._of_packages(self._packages, machine):
            named = self._packages.named
            return Lack(text, named is None or bool(self._of_packages(named, machine)))
        if names := self._compiled():
            return Lack(f"your {', '.join(names)} is compiled for {self._packages.driver}, not for {machine}", False)
        return None

    def _of_packages(self, packages: PackageLists, machine: str) -> str:
        built = next((wheel for wheel in packages.wheels if not wheel.pure), None)
        if built is not None:
            return (
                f"{built.name} {built.version} did not come from an index, and is built for {packages.driver}, not for "
                f"{machine}"
            )
        return _missing([*packages.exact, *packages.resolved], machine, self._image)


def _missing(lines: Sequence[str], machine: str, image: Image) -> str:
    """What of some requirements has no build, as uv puts it; empty if all has, and if uv can't tell."""
    uv = uv_here()
    if uv is None or not lines:
        return ""
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--no-header", "--python-platform"]
    command += [f"{machine}-{_GLIBC}", "--python-version", image.python_version, "-"]
    text = "\n".join([*lines, ""])
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=_settings(image), timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = " ".join(done.stderr.split())
    what = _NO_BUILD.search(said)
    if done.returncode != 1 or what is None:
        return ""
    found = _FOUND.search(said)
    return f"{what[1]} has no build for {machine} with Python {image.python_version}" + (
        f", only for {found[1].replace('`', '').strip()}" if found else ""
    )


def _settings(image: Image) -> dict[str, str]:
    """The environment in which uv looks where nodes will: in the image's indexes, or else in those of this machine."""
    settings = {**os.environ, **of_pip(os.environ, index=image.index is None), "UV_INDEX_STRATEGY": "unsafe-best-match"}
    if image.index is not None:
        settings["UV_INDEX_URL"] = image.index
    if image.extra_index:
        settings["UV_EXTRA_INDEX_URL"] = " ".join(image.extra_index)
    return settings
