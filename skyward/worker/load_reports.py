"""Tells the owner a few times a minute how busy this node is, at next to no cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from skyward.core.protocol.messages import Gpus, Load
from skyward.worker.machine_load import Usage
from skyward.worker.node_gpus import NodeGpus

__all__ = ["LoadReports"]

_FIRST = 1.0  # seconds until the first one


class LoadReports:
    """Reports the load of one node. Belongs to the agent's loop.

    Parameters
    ----------
    loop
        The agent's loop.
    post
        Sends the owner a message.
    is_linked
        Tells whether the owner is connected; nothing is reported while it is not.
    measure
        Measures the load.
    gpus
        Those of the slots, if these have some of their own.
    interval
        Seconds between two reports.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Load], object],
        is_linked: Callable[[], bool],
        measure: Callable[[], Usage],
        gpus: NodeGpus | None,
        interval: float,
    ) -> None:
        self._loop = loop
        self._post = post
        self._is_linked = is_linked
        self._measure = measure
        self._gpus = gpus
        self._interval = interval
        self._closed = False
        self._timer = loop.call_later(min(_FIRST, interval), self._due)

    def __repr__(self) -> str:
        return f"<LoadReports every {self._interval:g} s>"

    def close(self) -> None:
        """Stop reporting."""
        self._closed = True
        self._timer.cancel()

    def _due(self) -> None:
        if not self._is_linked():
            self._again()
        elif self._gpus is None:
            self._report(Gpus([], None))
        else:  # in a thread, and the driver of a GPU may hang for a while
            self._gpus.survey(self._report)

    def _report(self, gpus: Gpus) -> None:
        if not self._closed:
            self._post(Load(*self._measure(), gpus.found, gpus.error or ""))
            self._again()

    def _again(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._due)
