"""Names, numbers and `ip` commands of a lab's network; no state is kept here.

Lab number N owns 10.77.N.0/24 and every interface whose name starts with ``sklabN``
followed by nothing (the bridge), ``h`` (a host's end at the bridge) or ``t`` (the far end of
a long cable before it moves into its host). The names stay under the kernel's 15 characters.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

__all__ = ["BASE", "Net", "ip", "used_numbers"]

BASE = Path("/run/skyward-lab")
"""One folder per lab, named by its number."""

_INTERFACES = Path("/sys/class/net")


class Net:
    """The names and addresses that follow from a lab's number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.bridge = f"sklab{number}"
        self.gateway = self.address(1)

    def __repr__(self) -> str:
        return f"<Net {self.number} {self.gateway}/24 on {self.bridge}>"

    def address(self, k: int) -> str:
        """Address number k of the subnet."""
        return f"10.77.{self.number}.{k}"

    def mac(self, k: int) -> str:
        """The hardware address that belongs to address number k (locally administered)."""
        return f"02:53:4b:4d:{self.number:02x}:{k:02x}"

    def nic(self, k: int) -> str:
        """The interface at the bridge that leads to host number k."""
        return f"{self.bridge}h{k}"

    def far_nic(self, k: int) -> str:
        """The host's end of a long cable while it still is on our side."""
        return f"{self.bridge}t{k}"

    def interfaces(self) -> list[str]:
        """The interfaces of this lab that exist now, hosts' ends first, the bridge last."""
        mine = re.compile(rf"{self.bridge}([ht]\d+)?")
        names = [entry.name for entry in _INTERFACES.iterdir() if mine.fullmatch(entry.name)]
        return sorted(names, key=len, reverse=True)


def ip(*commands: str, check: bool = True) -> None:
    """Run the commands in one `ip -batch`; without check, go on after a failing one."""
    force = [] if check else ["-force"]
    done = subprocess.run(
        ["ip", *force, "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise OSError(f"ip failed: {done.stderr.strip()} in {list(commands)}")


def used_numbers(folders: Iterable[str]) -> set[int]:
    """Numbers taken by a lab's folder or by any route of this machine."""
    routes = subprocess.run(["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    taken = {int(number) for number in re.findall(r"\b10\.77\.(\d+)\.", routes.stdout)}
    return taken | {int(name) for name in folders if name.isdigit()}
