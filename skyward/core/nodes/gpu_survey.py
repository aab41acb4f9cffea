"""What a node says of its GPUs: before its slots are ready, and whenever it is asked how much of them is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from skyward.core.gpus import Gpu
from skyward.core.protocol.messages import Gpus, Survey
from skyward.core.visible import shown

__all__ = ["GpuSurvey"]


class GpuSurvey:
    """The GPUs of one node's slots.

    Parameters
    ----------
    send
        Sends the node a message.
    """

    def __init__(self, send: Callable[[Survey], object]) -> None:
        self.found: tuple[Gpu, ...] = ()
        """As they were last reported."""
        self._send = send
        self._waiting: list[asyncio.Future[str | None]] = []

    def __repr__(self) -> str:
        return f"<GpuSurvey, {len(self.found)} found>"

    async def ask(self) -> str | None:
        """Have `found` brought up to date; returns why that failed, if it did."""
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._send(Survey())
        return await answer

    def heard(self, message: Gpus) -> None:
        """Take what the node says."""
        if message.error is None:
            self.found = tuple(
                Gpu(shown(id, lines=False), shown(name, lines=False), memory, used)
                for id, name, memory, used in message.found
            )
        for answer in self._waiting:
            if not answer.done():  # who asked may wait no longer
                answer.set_result(None if message.error is None else shown(message.error))
        self._waiting.clear()
