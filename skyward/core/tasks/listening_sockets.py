"""Which listening sockets of this process a node's tasks may reach: those of multiprocessing that are its own.

A Manager's server is another process, and reached when a proxy of it has been sent to a node. A
``multiprocessing.connection.Listener`` that this process made is reached too: whoever speaks with it needs its key, if
it has one. A node names what it wants, and may name anything: sockets of the user's other programs are not for it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
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
    """Those of this process, for one pool.

    Parameters
    ----------
    opener
        Connects to an address here; None where no streams are bridged.
    """

    def __init__(self, opener: Callable[[str], Awaitable[Channel]] | None = None) -> None:
        self._opener = opener
        self._sent: set[str] = set()

    def __repr__(self) -> str:
        return f"<Listeners {sorted(self._sent)}>"

    def sent(self, proxies: list[Any]) -> bytes:
        """Proxies have been pickled for a node: it may reach their Managers, with this key. Any thread."""
        for proxy in proxies:
            address = proxy._token.address  # noqa: SLF001
            self._sent.add(address if isinstance(address, str) else ":".join(map(str, address)))
        return bytes(multiprocessing.current_process().authkey)

    async def open(self, address: str) -> Channel:
        """A stream to a listener.

        Raises
        ------
        LinkError
            It is not one that a node may reach, or nobody listens there.
        """
        if self._opener is None:
            raise LinkError("this pool bridges no streams")
        if address not in self._sent and not await asyncio.to_thread(_is_own, address):
            raise LinkError(f"{address} is not a listener of multiprocessing in the process that opened the pool")
        return await self._opener(address)


def _is_own(path: str) -> bool:
    """Whether multiprocessing listens there in this very process; as the kernel knows it, on Linux."""
    if not Path(path).parent.name.startswith("pymp-") or sys.platform != "linux":
        return False
    inodes = set()
    for line in os.fsdecode(Path("/proc/self/net/unix").read_bytes()).splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and parts[7] == path and int(parts[3], 16) & _LISTENS:
            inodes.add(f"socket:[{parts[6]}]")
    return bool(inodes) and any(_leads_to(name) in inodes for name in os.listdir("/proc/self/fd"))  # noqa: PTH208


def _leads_to(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:  # closed meanwhile
        return ""
