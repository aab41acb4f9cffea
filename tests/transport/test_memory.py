"""The memory transport keeps the contract of transports."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from skyward.core.spec import Endpoint
from skyward.testing.service import Service
from skyward.testing.transport import Place, TransportConformance
from skyward.transport.memory import MemoryChannel, MemoryTransport, listen


class TestMemory(TransportConformance):
    """In one event loop."""

    def transport(self) -> MemoryTransport:
        return MemoryTransport()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        service, host, tasks = Service(), uuid.uuid4().hex, set[asyncio.Task[None]]()

        def accept(channel: MemoryChannel) -> None:
            tasks.add(asyncio.get_running_loop().create_task(service.serve(channel)))

        end = listen(host, "service", accept)
        try:
            yield Place(Endpoint("memory", host), "service", "nobody", closed=Endpoint("memory", "no such host"))
        finally:
            end()
            for task in tasks:
                task.cancel()
