"""What inspecting a machine has found, parsed from the output of the script `INSPECT`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from skyward.core.packages.fetch import Target

__all__ = ["Findings"]


@dataclass(frozen=True, slots=True)
class Findings:
    """A machine as it is before it is prepared.

    Attributes
    ----------
    root
        Our folder there.
    env, env_is_complete
        Folder of the environment that is wanted, and whether it is usable.
    has_code
        Whether our own code is there.
    system, glibc
        What ``uname -sm`` and ``getconf GNU_LIBC_VERSION`` print.
    uv
        Path of uv; empty if there is none.
    pythons, other_pythons
        Interpreters of the driver's minor version, and names of others.
    missing_packages
        What of the image's Debian packages is not installed.
    """

    root: str
    env: str
    env_is_complete: bool
    has_code: bool
    system: str
    glibc: str
    uv: str
    pythons: tuple[str, ...]
    other_pythons: tuple[str, ...]
    missing_packages: tuple[str, ...]

    @classmethod
    def read(cls, text: str, packages: Mapping[str, str]) -> Findings | None:
        """Read the script's output; None if that is not complete.

        Parameters
        ----------
        text
            What it printed.
        packages
            Names of Debian packages by what the image calls them.
        """
        facts: dict[str, list[str]] = {}
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            facts.setdefault(name, []).append(value)
        if "end" not in facts:
            return None
        installed = set(facts.get("package", []))
        one = {name: values[0] for name, values in facts.items()}
        return cls(
            root=one["root"],
            env=one["env"],
            env_is_complete="complete" in facts,
            has_code="has_code" in facts,
            system=one.get("system", "?"),
            glibc=one.get("glibc", ""),
            uv=one.get("uv", ""),
            pythons=tuple(dict.fromkeys(facts.get("python", []))),
            other_pythons=tuple(sorted(set(facts.get("other", [])))),
            missing_packages=tuple(asked for asked, name in packages.items() if name not in installed),
        )

    def target(self, python: str) -> Target:
        """What wheels and programs must be built for, with this minor version of Python."""
        version = re.fullmatch(r"glibc 2\.(\d+).*", self.glibc)
        return Target(self.system.rpartition(" ")[2], int(version[1]) if version else 0, python)
