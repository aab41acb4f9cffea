"""What an agent uses of its machine can be replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skyward.core.protocol.messages import Message, Ready
from skyward.worker.agent_system import AgentSystem
from skyward.worker.forkserver.launch import ForkServerProcess, started
from skyward.worker.forkserver.liveness import LIMITS
from skyward.worker.slot_pool import SlotPool
from tests.worker.helpers import PATIENCE, ROOT, setup


def test_the_log_never_grows_without_end(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_bytes(bytes(1024 * 1024 + 1))
    code = "from skyward.worker.agent_system import log; log('one'); log('two')"
    with path.open("ab") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, cwd=ROOT, check=True)
    first, second = path.read_text().splitlines()
    assert first.startswith("skyward agent ")
    assert (first[-5:], second[-5:]) == (": one", ": two")


def test_fork_servers_are_started_and_replaced_by_it(tmp_path: Path) -> None:
    servers: list[ForkServerProcess] = []

    def start(env: Mapping[str, str]) -> ForkServerProcess:
        servers.append(started(env))
        return servers[-1]

    async def live() -> None:
        posted: list[Message] = []

        def post(message: Message, _: Sequence[Any], __: bool) -> int:
            posted.append(message)
            return len(posted)

        own = {"scratch": [], "limits": list(LIMITS)}
        loop, system = asyncio.get_running_loop(), AgentSystem(start_server=start)
        pool = SlotPool(loop, setup(concurrency=1), 1, str(tmp_path), post, None, own, system)
        try:
            async with asyncio.timeout(PATIENCE):
                while Ready(1, None) not in posted:  # noqa: ASYNC110 - nothing reports it
                    await asyncio.sleep(0.01)
                os.kill(servers[0].process.pid, signal.SIGKILL)
                while len(servers) < 2:  # noqa: ASYNC110 - nothing reports it
                    await asyncio.sleep(0.01)
        finally:
            await pool.end()

    asyncio.run(live())
    assert len(servers) == 2
