"""Peers take turns at a workload.

Each peer has a process for the workload, opened and warmed up before the first turn; then all do their first run, all
their second, and so on, so that whatever else the machine does affects all of them alike. A process per run would
measure the same, but some peers take longer to open than to run. The price is that the others are present meanwhile,
idle. Workloads that consume a peer, and those with hundreds of processes, still get a process per run.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from benchmarks import processes
from benchmarks.meter import OWN_NETWORK
from benchmarks.model import Figures, Peer, Scale, Workload

__all__ = ["Outcome", "Runner", "Trouble", "take_turns"]

_OPEN = 180.0  # seconds that opening and warming up may take
_END = 20.0  # seconds that a peer may take to end

Tell = Callable[[str], None]


class Trouble(RuntimeError):
    """A peer failed at a workload; the text says how."""


@dataclass
class Outcome:
    """What came of a peer's turns."""

    workload: str
    peer: str
    runs: list[Figures] = field(default_factory=list)
    error: str | None = None


class Runner:
    """A `benchmarks.runner` process, from this side."""

    def __init__(self, peer: Peer, workload: Workload, scale: Scale) -> None:
        self.name = peer.name
        self._patience = workload.patience
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        command = [sys.executable, "-m", "benchmarks.runner", peer.name, workload.name, scale]
        environment = dict(os.environ)
        if peer.place == "local" and os.geteuid() == 0:
            # A loopback device of its own counts the peer's bytes and nobody else's.
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
            environment[OWN_NETWORK] = "yes"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def __repr__(self) -> str:
        return f"<Runner {self.name} {self._process.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until it is open."""
        self._answer(_OPEN)

    def run(self, number: int) -> Figures:
        """Let it do a run.

        Raises
        ------
        Trouble
            It failed, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why, it may have said
        figures: Figures = self._answer(self._patience)["figures"]
        return figures

    def end(self) -> None:
        """Tell it to end; `close` waits for that."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()

    def close(self) -> None:
        """End it and all that it started. May be repeated."""
        self.end()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                self._process.wait(_END)
                break
            except subprocess.TimeoutExpired:
                if number == signal.SIGKILL:
                    processes.kill(processes.descendants(self._process.pid))
                self._process.send_signal(number)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()

    def _answer(self, patience: float) -> dict[str, Figures]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(patience):
                raise Trouble(f"no answer within {patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise Trouble(f"its process ended: {self._said.read().decode(errors='replace')[-500:].strip()}")
        answer: dict[str, Figures] = json.loads(line)
        if "error" in answer:
            raise Trouble(str(answer["error"]))
        return answer


def take_turns(workload: Workload, peers: Sequence[Peer], scale: Scale, runs: int, tell: Tell) -> list[Outcome]:
    """Let peers run a workload in turn. One that fails is out of this workload; the others go on."""
    outcomes = {peer.name: Outcome(workload.name, peer.name) for peer in peers}
    # All start at once, which is over before anything is measured.
    runners = {} if workload.fresh else {peer.name: Runner(peer, workload, scale) for peer in peers}
    try:
        for peer in peers if runners else ():
            _turn(runners[peer.name], None, outcomes[peer.name])
            if outcomes[peer.name].error is not None:
                tell(_line(workload, outcomes[peer.name]))
        for number in range(runs):
            for peer in peers:
                outcome = outcomes[peer.name]
                if outcome.error is not None:
                    continue
                if workload.fresh:
                    with Runner(peer, workload, scale) as runner:
                        _turn(runner, None, outcome)
                        _turn(runner, number, outcome)
                else:
                    _turn(runners[peer.name], number, outcome)
                tell(_line(workload, outcome))
    finally:
        for runner in runners.values():
            runner.end()
        for runner in runners.values():
            runner.close()
    return list(outcomes.values())


def _turn(runner: Runner, number: int | None, outcome: Outcome) -> None:
    """Let a peer do a run, or only get ready for its first."""
    if outcome.error is not None:
        return
    began = time.monotonic()
    try:
        if number is None:
            runner.ready()
        else:
            outcome.runs.append(runner.run(number))
    except Trouble as trouble:
        outcome.error = f"{trouble} (after {time.monotonic() - began:.0f} s)"
        runner.close()


def _line(workload: Workload, outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"{workload.name:16} {outcome.peer:14} fails: {outcome.error}"
    return f"{workload.name:16} {outcome.peer:14} {workload.figure} {outcome.runs[-1][workload.figure]:,.4g}"
