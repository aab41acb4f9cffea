"""The GPUs of an agent's slots: found before the slots start; their usage is queried later. Never blocks the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from skyward.core.gpus import Gpu
from skyward.core.protocol.messages import Gpus, Setup
from skyward.worker.gpu_search import FoundGpus
from skyward.worker.gpu_shares import GpuError, share_out, variables

__all__ = ["NodeGpus"]


class NodeGpus:
    """The GPUs of one node's slots.

    Parameters
    ----------
    loop
        The agent's loop.
    setup
        How many each slot has.
    find
        See `AgentSystem.find_gpus`; runs in a thread.
    start_thread
        See `AgentSystem.start_thread`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        find: Callable[[Mapping[str, str]], FoundGpus],
        start_thread: Callable[[Callable[[], None], str], object],
    ) -> None:
        self._loop = loop
        self._setup = setup
        self._find = find
        self._start_thread = start_thread
        self._ids: set[str] = set()  # those of the slots

    def __repr__(self) -> str:
        return f"<NodeGpus {sorted(self._ids)}>"

    def share_out(self, then: Callable[[Sequence[Mapping[str, str | None]], Gpus], object]) -> None:
        """Find the GPUs, and call `then` with each slot's environment variables and the message for the owner.

        If there are too few, there are no variables, and the message says why.
        """

        def divide(found: FoundGpus | Exception) -> None:
            if isinstance(found, Exception):
                then([], _failure(found))
                return
            first, count = self._setup.part
            try:
                shares = share_out(found.gpus, self._setup.gpus, self._setup.concurrency, (first, count))
            except GpuError as error:
                then([], Gpus([], f"{error}{f' ({found.remark})' if found.remark else ''}"))
                return
            self._ids = {gpu.id for share in shares for gpu in share}
            then([variables(found.maker, share) for share in shares], self._message(found.gpus))

        self._look(divide)

    def survey(self, then: Callable[[Gpus], object]) -> None:
        """Query the GPUs' usage, and call `then` with the message for the owner."""
        self._look(lambda found: then(_failure(found) if isinstance(found, Exception) else self._message(found.gpus)))

    def _message(self, gpus: Sequence[Gpu]) -> Gpus:
        return Gpus([[gpu.id, gpu.name, gpu.memory, gpu.used, gpu.busy] for gpu in gpus if gpu.id in self._ids], None)

    def _look(self, then: Callable[[FoundGpus | Exception], object]) -> None:
        """Find GPUs in a thread, and call `then` on the loop."""
        self._start_thread(partial(self._find_aside, then), "skyward-gpus")

    def _find_aside(self, then: Callable[[FoundGpus | Exception], object]) -> None:
        try:
            found: FoundGpus | Exception = self._find({**os.environ, **self._setup.env})
        except Exception as error:  # whoever asked must hear of it
            found = error
        with contextlib.suppress(RuntimeError):  # the agent has ended
            self._loop.call_soon_threadsafe(then, found)


def _failure(error: Exception) -> Gpus:
    return Gpus([], str(error) if isinstance(error, GpuError) else f"{type(error).__name__}: {error}")
