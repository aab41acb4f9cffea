"""Fetches files of nodes: a few parts from each node at once, written to temporary files until all are complete."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgpack

from skyward.core.errors import DownloadFailed, NodeLost
from skyward.core.files.download_plan import Transfer, by_node, plan, rows
from skyward.core.files.requests import RequestRefused, Requests
from skyward.core.nodes.session import Session
from skyward.core.protocol.messages import Find, Read
from skyward.core.protocol.wire import Buffer

__all__ = ["download"]

_PART = 1 << 20  # bytes per request
_WINDOW = 8  # parts of one node on their way
_FIRST = 2.0  # seconds until progress is first reported
_EVERY = 5.0  # seconds between two reports
_MARGIN = 16 << 20  # bytes of the disk to leave free


async def download(
    requests: Requests,
    sessions: Mapping[str, Session],
    pattern: str,
    to: str,
    *,
    overwrite: bool,
    report: Callable[[str], object],
) -> list[Path]:
    """Download what matches a pattern.

    Parameters
    ----------
    requests
        Asks nodes.
    sessions
        The nodes to ask.
    pattern, to
        As `Compute.download` takes them.
    overwrite
        Whether files here may be replaced.
    report
        Called with a few words on how far it is, if that takes a while.

    Returns
    -------
    list of Path
        The files here.

    Raises
    ------
    DownloadFailed
        That is not possible; no file here has changed.
    """
    asking = [_ask(requests, name, session, pattern, to) for name, session in sessions.items()]
    found = [transfer for listed in await asyncio.gather(*asking) for transfer in listed]
    wanted = [each for each in found if not _is_same(each)]
    if found and not wanted:
        return [Path(each.target) for each in found]
    wanted = plan(wanted, pattern, list(sessions), os.path.lexists, overwrite=overwrite)
    fetching = _Fetching(requests, sessions, wanted)
    watching = asyncio.create_task(fetching.watch(report))
    try:
        await fetching.run()
    finally:
        watching.cancel()
    return [Path(each.target) for each in found]


async def _ask(requests: Requests, name: str, session: Session, pattern: str, to: str) -> list[Transfer]:
    _, reply = requests.ask(session, lambda number: Find(number, os.fsencode(pattern)))
    try:
        listed: Any = msgpack.unpackb(await reply)
    except (RequestRefused, NodeLost, ValueError) as error:
        raise DownloadFailed(f"{name} can't list its files: {error}") from error
    return rows(name, listed, to)


def _is_same(transfer: Transfer) -> bool:
    """Whether a file of a node on this machine is at its place already."""
    with contextlib.suppress(OSError, ValueError):
        path = os.fsdecode(transfer.path)
        return os.path.isabs(path) and os.path.samefile(path, transfer.target)
    return False


class _Fetching:
    """The files of one download.

    Parameters
    ----------
    requests, sessions
        As above.
    transfers
        What to fetch.
    """

    def __init__(self, requests: Requests, sessions: Mapping[str, Session], transfers: Sequence[Transfer]) -> None:
        self._requests = requests
        self._sessions = sessions
        self._transfers = transfers
        self._size = sum(transfer.size for transfer in transfers)
        self._done = 0
        self._parts: dict[Transfer, str] = {}  # files that are not in their place yet

    async def watch(self, report: Callable[[str], object]) -> None:
        """Report how far it is."""
        await asyncio.sleep(_FIRST)
        while True:
            report(f"downloading: {self._done / 1e6:,.0f} of {self._size / 1e6:,.0f} MB")
            await asyncio.sleep(_EVERY)

    async def run(self) -> None:
        """Fetch all files, and put them in their places at the end."""
        try:
            self._make_room()
            async with asyncio.TaskGroup() as group:
                for node, transfers in by_node(self._transfers).items():
                    group.create_task(self._fetch_all(self._sessions[node], transfers))
            for transfer, part in list(self._parts.items()):
                os.replace(part, transfer.target)
                del self._parts[transfer]
        except (OSError, RequestRefused, NodeLost, ExceptionGroup) as error:
            first = error
            while isinstance(first, ExceptionGroup):
                first = first.exceptions[0]
            if not isinstance(first, (OSError, RequestRefused, NodeLost)):
                raise
            raise DownloadFailed(_reason(first)) from first
        finally:
            for part in self._parts.values():
                with contextlib.suppress(OSError):
                    os.unlink(part)

    def _make_room(self) -> None:
        """Make the folders, and check whether there is room."""
        for folder in {os.path.dirname(transfer.target) or "." for transfer in self._transfers}:
            os.makedirs(folder, exist_ok=True)
            room = os.statvfs(folder)
            if (free := room.f_bavail * room.f_frsize) < self._size + _MARGIN:
                raise OSError(
                    f"there is no room for {self._size / 1e9:.1f} GB in {folder}: {free / 1e9:.1f} GB are free"
                )

    async def _fetch_all(self, session: Session, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            fd, self._parts[transfer] = tempfile.mkstemp(
                prefix=".skyward-", dir=os.path.dirname(transfer.target) or "."
            )
            try:
                await self._fetch(session, transfer, fd)
                os.fchmod(fd, (0o777 if transfer.runs else 0o666) & ~_umask())
                os.utime(fd, ns=(transfer.changed, transfer.changed))
            finally:
                os.close(fd)

    async def _fetch(self, session: Session, transfer: Transfer, fd: int) -> None:
        flying: set[asyncio.Task[None]] = set()
        try:
            for offset in range(0, transfer.size, _PART):
                flying.add(asyncio.create_task(self._fetch_part(session, transfer, fd, offset)))
                while len(flying) >= _WINDOW:
                    flying = await _land(flying)
            while flying:
                flying = await _land(flying)
        finally:
            for part in flying:
                part.cancel()
            await asyncio.gather(*flying, return_exceptions=True)  # they write to the file

    async def _fetch_part(self, session: Session, transfer: Transfer, fd: int, offset: int) -> None:
        length = min(_PART, transfer.size - offset)
        _, reply = self._requests.ask(
            session, lambda number: Read(number, transfer.path, offset, length, transfer.size, transfer.changed)
        )
        data = await reply
        if len(data) != length:
            raise RequestRefused(f"{transfer.node} sent {len(data)} bytes of {transfer.target} instead of {length}")
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, partial(_write, fd, data, offset)))
        self._done += length


async def _land(flying: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    for part in done:
        part.result()
    return flying


def _write(fd: int, data: Buffer, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _reason(error: Exception) -> str:
    text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)
    return f"{text}; nothing was overwritten"
