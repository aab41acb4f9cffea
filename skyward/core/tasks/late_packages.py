"""Packages that nodes turn out to lack when a call is loaded: they are installed there, and the call is sent again.

At that time none of the call has run, so it may be loaded once more. What is imported while a task runs can't be
supplied that way; there the error says what to add to the image.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from skyward.core.errors import SkywardError
from skyward.core.events import Events, Note
from skyward.core.nodes.session import Session
from skyward.core.packages.lists import PackageLists
from skyward.core.protocol.messages import Failed, Failure
from skyward.core.tasks import schedule_events
from skyward.core.tasks.jobs import Job
from skyward.core.tasks.schedule_events import Outcome

__all__ = ["LatePackages", "Supplier"]

_log = logging.getLogger("skyward.packages")


class Supplier(Protocol):
    """Knows the driver's environment."""

    def late(self, module: str) -> PackageLists | None:
        """What to install where a module is missing; None if no package of the driver's has it. Called in a thread."""
        ...


@dataclass(slots=True, eq=False)
class _Supply:
    """One module on one node."""

    jobs: list[Job] = field(default_factory=list)
    done: bool = False
    failed: bool = False
    problem: str = ""
    """What went wrong, if it could have been supplied."""


class LatePackages:
    """Holds back jobs until what they lack is there. Belongs to the event loop.

    Parameters
    ----------
    supplier
        Knows what can be installed; None: nothing.
    events
        Where it is reported.
    run
        Sends a job to a node.
    handle
        Tells the schedule what became of a job that is not sent again.
    """

    def __init__(
        self,
        supplier: Supplier | None,
        events: Events,
        run: Callable[[schedule_events.Run], object],
        handle: Callable[[schedule_events.Event], object],
    ) -> None:
        self._supplier = supplier
        self._events = events
        self._run, self._handle = run, handle
        self._supplies: dict[tuple[str, str], _Supply] = {}  # (node, module)
        self._tried: dict[int, set[tuple[str, str]]] = {}  # job -> what it was held back for
        self._turns: dict[str, asyncio.Lock] = {}  # guards each node's installer: it does one thing at a time
        self._running: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<LatePackages, {sum(len(supply.jobs) for supply in self._supplies.values())} jobs wait>"

    def takes(self, session: Session, job: Job, message: Failed) -> bool:
        """Whether a job that failed on a node is held back, since it will be run there again.

        Parameters
        ----------
        session
            The node's.
        job, message
            What failed, and how.
        """
        if self._supplier is None or session.supply is None or not message.missing:
            return False
        key = (session.node, message.missing)
        tried = self._tried.setdefault(job.id, set())
        if message.reason != Failure.UNLOADABLE.value or key in tried:
            return False
        tried.add(key)
        supply = self._supplies.get(key)
        if supply is None:
            supply = self._supplies[key] = _Supply()
            task = asyncio.get_running_loop().create_task(self._install(session, message.missing, supply))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        job.note = supply.problem
        if supply.failed:
            return False
        supply.jobs.append(job)
        if supply.done:  # it was sent before that
            asyncio.get_running_loop().call_soon(self._release, supply)
        return True

    def holds(self, job: Job) -> bool:
        """Whether a job is held back, so that its node does not have it."""
        return any(job in supply.jobs for supply in self._supplies.values())

    def stop(self, job: Job) -> bool:
        """Stop a job that is no longer wanted, if it is held back. Returns whether it was."""
        for supply in self._supplies.values():
            if job in supply.jobs:
                supply.jobs.remove(job)
                self._handle(schedule_events.Finished(job.id, job.node, Outcome.STOPPED))
                return True
        return False

    def settled(self, job: Job) -> None:
        """Forget a job that is over."""
        self._tried.pop(job.id, None)

    def node_down(self, node: str) -> None:
        """Forget a node; the schedule runs its jobs elsewhere."""
        for key in [key for key in self._supplies if key[0] == node]:
            self._supplies.pop(key).jobs.clear()
        self._turns.pop(node, None)

    async def _install(self, session: Session, module: str, supply: _Supply) -> None:
        assert self._supplier is not None
        assert session.supply is not None
        async with self._turns.setdefault(session.node, asyncio.Lock()):  # guards the node's installer
            try:
                lists = await asyncio.to_thread(self._supplier.late, module)
                if lists is None:
                    supply.failed = True
                else:
                    what = ", ".join(line.partition(" ;")[0] for line in (*lists.exact, *lists.resolved))
                    self._events.emit(Note(f"installing {what} on {session.node}: a task needs {module}"))
                    await session.supply(lists)
            except Exception as error:  # whatever it is, the calls that are held back must not wait forever
                what = f"{error}" if isinstance(error, SkywardError) else f"{type(error).__name__}: {error}"
                supply.failed, supply.problem = True, f"installing it on {session.node} failed: {what}"
                if not isinstance(error, SkywardError):
                    _log.exception("%s: unexpected error", session.node)
        supply.done = True
        self._release(supply)

    def _release(self, supply: _Supply) -> None:
        jobs, supply.jobs = supply.jobs, []
        for job in jobs:
            job.note = supply.problem
            if supply.failed:
                self._handle(schedule_events.Finished(job.id, job.node, Outcome.ANSWERED))
            else:
                self._run(schedule_events.Run(job.node, job.id, job.alone))
