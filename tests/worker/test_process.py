"""What a process of ours does about itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.worker.helpers import ROOT, descendants, owner, wait_for


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_processes_have_names() -> None:
    with owner() as node:
        node.set_up(concurrency=2)
        assert comm(node.call(os.getpid)) == "skyward-slot"
        assert comm(node.pid) == "skyward-agent"
        assert sorted(map(comm, descendants(node.pid))) == ["skyward-forks", "skyward-slot", "skyward-slot"]


def test_forks_with_input_and_output_of_their_own() -> None:
    code = """
        import os, signal, sys
        from skyward.worker.process import multiply, reap

        pids = multiply(sys.argv[1:])
        assert len(pids) in (0, 2)
        if pids:
            signal.signal(signal.SIGCHLD, lambda *_: reap(pids))
        word = os.read(0, 100)
        os.write(1, word.upper())
    """
    pipes = [(*os.pipe(), *os.pipe()) for _ in range(2)]
    pairs = [f"{read},{write}" for read, _, _, write in pipes]
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *pairs],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        pass_fds=[fd for read, _, _, write in pipes for fd in (read, write)],
    )  # fmt: skip
    wait_for(lambda: len(descendants(first.pid)) == 2, "two forks")
    for number, (read, source, target, write) in enumerate(pipes):
        os.close(read)
        os.close(write)
        os.write(source, b"fork %d" % number)
        assert os.read(target, 100) == b"FORK %d" % number
        assert os.read(target, 100) == b""  # nobody else has it
        os.close(source)
        os.close(target)
    wait_for(lambda: not descendants(first.pid), "that none stays a zombie")
    assert first.communicate(b"first", timeout=10)[0] == b"FIRST"
    assert first.returncode == 0
