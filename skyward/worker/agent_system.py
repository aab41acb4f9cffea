"""What an agent uses of its machine in addition to its loop, so that a simulation can replace it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from skyward.core.system import machine
from skyward.worker import gpu_search
from skyward.worker.blob_store import Store
from skyward.worker.exit_status import OutOfMemory
from skyward.worker.forkserver.launch import ForkServerProcess, started
from skyward.worker.gpu_search import FoundGpus
from skyward.worker.machine_load import MachineLoad, Usage
from skyward.worker.peer_network import PeerNetwork, TLSNetwork

__all__ = ["AgentSystem", "log"]

_LOG = 1024 * 1024  # bytes of the log file


def log(text: str) -> None:
    """Write a line to standard error: the log file once the agent is detached. A file that is too long is emptied."""
    with contextlib.suppress(OSError):
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and status.st_size > _LOG:
            os.ftruncate(2, 0)
        os.write(2, f"skyward agent {os.getpid()}: {text}\n".encode())


def start_thread(run: Callable[[], None], name: str) -> None:
    """Start a daemon thread."""
    threading.Thread(target=run, name=name, daemon=True).start()


@dataclass(frozen=True)
class AgentSystem:
    """The functions that an agent calls.

    Attributes
    ----------
    start_server
        Starts a fork server with these environment variables, to replace one that died. May raise `OSError`.
    sleep
        Blocks the loop's thread for some seconds.
    random_bytes
        Returns that many unpredictable random bytes.
    log
        Writes a line to the agent's log.
    peer_network
        Makes the network to other nodes, given the loop, an identity as in `Setup`, and a folder that only this user
        can enter. May raise `OSError` or `ValueError`.
    find_gpus
        Returns the GPUs that processes with these environment variables may use. Blocks, and may raise `GpuError`.
    start_thread
        Runs a blocking function in a daemon thread of that name.
    memory
        Returns the machine's memory, in bytes.
    make_meter
        Returns a function that measures the machine's load, given the folder where tasks work. Must neither block nor
        raise.
    watch_memory
        Returns an object that tells whether the kernel's OOM killer has struck.
    make_store
        Makes the store of blobs, which keeps at most so many files of other processes open.
    pipe
        Makes a pipe, as `os.pipe` does.
    """

    start_server: Callable[[Mapping[str, str]], ForkServerProcess] = started
    sleep: Callable[[float], None] = time.sleep
    random_bytes: Callable[[int], bytes] = os.urandom
    log: Callable[[str], None] = log
    peer_network: Callable[[asyncio.AbstractEventLoop, dict[str, str], str], PeerNetwork] = TLSNetwork
    start_thread: Callable[[Callable[[], None], str], object] = start_thread
    find_gpus: Callable[[Mapping[str, str]], FoundGpus] = gpu_search.find
    memory: Callable[[], int] = machine.memory
    make_meter: Callable[[str], Callable[[], Usage]] = lambda folder: MachineLoad(folder).read
    watch_memory: Callable[[], OutOfMemory] = OutOfMemory
    make_store: Callable[[int], Store] = lambda max_adopted: Store(max_adopted=max_adopted)
    pipe: Callable[[], tuple[int, int]] = os.pipe
