"""The process of an agent on a machine with a shell, until somebody has greeted it.

An agent ends when its owner says goodbye. One that no owner has greeted would wait for as long as orphans may live, ten
minutes by default: whoever had it started and no longer wants it ends it with these functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any, NamedTuple

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput, Shell

__all__ = ["Announcement", "end_agent", "end_if_cancelled"]

_LIMIT = 5.0  # seconds for it to announce itself, and to be ended: the end of a pool waits for both


class Announcement(NamedTuple):
    """What an agent prints as it starts: the path of its socket, and its process ID."""

    path: str
    pid: int

    @classmethod
    def read(cls, done: CommandOutput) -> Announcement:
        """Read it from the end of a command's output.

        Raises
        ------
        ValueError
            It is not there.
        """
        try:
            said = json.loads(done.stdout.strip().splitlines()[-1])
            return cls(str(said["listening"]).removeprefix("unix:"), int(said["pid"]))
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError("no agent has announced itself") from error


async def end_agent(shell: Shell, pid: int) -> None:
    """End an agent, if the connection still works; if it is broken, the agent ends by itself later."""
    with contextlib.suppress(LinkError, TimeoutError):
        await shell.run(f"kill {pid}", timeout=_LIMIT)


async def end_if_cancelled(shell: Shell, starting: Coroutine[Any, Any, CommandOutput]) -> CommandOutput:
    """Wait for a command that may start an agent; if the caller is cancelled meanwhile, have the agent end first.

    Parameters
    ----------
    shell
        That of the machine.
    starting
        The command. Its errors are raised.
    """
    command = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(command)
    except asyncio.CancelledError:
        with contextlib.suppress(LinkError, OSError, TimeoutError, ValueError):
            done = await asyncio.wait_for(command, _LIMIT)
            await end_agent(shell, Announcement.read(done).pid)
        raise
