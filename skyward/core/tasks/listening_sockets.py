"""Which listening sockets the tasks of a node may connect to: those of multiprocessing that belong to this process.

A Manager's server is another process; it may be connected to once a proxy of it has been sent to a node. So may a
``multiprocessing.connection.Listener`` of this process, whose clients need its key if it has one. A node may ask for
any address, and must not get at sockets of the user's other programs.
"""

from __future__ import annotations

import asyncio
import multiprocessing.util
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from skyward.core.errors import LinkError
from skyward.core.interfaces import Channel

__all__ = ["Listeners"]

_LISTENS = 0x10000  # __SO_ACCEPTCON of Linux, in the flags of /proc/net/unix


class Listeners:
    """The listening sockets that the nodes of one pool may connect to.

    Parameters
    ----------
    opener
        Connects to an address on this machine; None if no streams are bridged.
    """

    def __init__(self, opener: Callable[[str], Awaitable[Channel]] | None = None) -> None:
        self._opener = opener
        self._sent: set[str] = set()

    def __repr__(self) -> str:
        return f"<Listeners {sorted(self._sent)}>"

    def sent(self, proxies: list[Any]) -> bytes:
        """Allow connections to the Managers of these proxies; return the key for them. Callable from any thread."""
        for proxy in proxies:
            address = proxy._token.address  # noqa: SLF001
            self._sent.add(address if isinstance(address, str) else ":".join(map(str, address)))
        return bytes(multiprocessing.current_process().authkey)

    async def open(self, address: str) -> Channel:
        """Connect to a listener.

        Raises
        ------
        LinkError
            Nodes may not connect to it, or nothing listens there.
        """
        if self._opener is None:
            raise LinkError("this pool bridges no streams")
        if address not in self._sent and not await asyncio.to_thread(_is_own, address):
            raise LinkError(f"{address} is not a listener of multiprocessing in the process that opened the pool")
        return await self._opener(address)


def _is_own(path: str) -> bool:
    """Whether this very process listens there for multiprocessing.

    On Linux the kernel says so. Elsewhere the socket lies in the private folder that multiprocessing has made for this
    process, in which its children listen as well.
    """
    if not Path(path).parent.name.startswith("pymp-"):
        return False
    if sys.platform != "linux":
        return Path(path).parent == Path(multiprocessing.util.get_temp_dir())
    inodes = set()
    for line in os.fsdecode(Path("/proc/self/net/unix").read_bytes()).splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and parts[7] == path and int(parts[3], 16) & _LISTENS:
            inodes.add(f"socket:[{parts[6]}]")
    return bool(inodes) and any(_leads_to(name) in inodes for name in os.listdir("/proc/self/fd"))  # noqa: PTH208


def _leads_to(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:  # closed in the meantime
        return ""
