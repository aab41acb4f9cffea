"""A small process that outlives the driver: when the driver dies, it gives back what the driver bought.

``python -m skyward.core.reaper``, started by the pool in a session of its own. On its standard input it gets the pool's
tag, the driver's pid and the providers, pickled, since credentials may stand in them; then it waits. The end of the
input without the word "done" means that the driver has died. It loads nothing else before that.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["dismiss", "main", "start"]

_DONE = b"done"
_TRIES = 5
_PAUSE = 30.0


def start(tag: str, folder: Path, providers: bytes) -> subprocess.Popen[bytes]:
    """Start a reaper for this process; `providers` is a pickled list. End it with `dismiss`."""
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), *sys.path[1:], os.environ.get("PYTHONPATH")]))
    with (folder / "reaper.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "skyward.core.reaper"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # neither Ctrl-C nor the terminal's end is for it
            cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )
    assert process.stdin is not None
    head = json.dumps({"tag": tag, "pid": os.getpid(), "folder": str(folder)}).encode()
    for part in (head, providers):
        process.stdin.write(struct.pack("!I", len(part)) + part)
    process.stdin.flush()
    return process


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """Nothing is left to do for it."""
    process.communicate(_DONE)


def main() -> None:
    """Wait for the driver's end, and clean up unless it did."""
    head = json.loads(_read())
    providers = _read()
    driver = os.pidfd_open(head["pid"]) if hasattr(os, "pidfd_open") else -1
    try:
        # A fork of the driver may hold the other end of the input, so the driver itself is watched as well.
        ready, _, _ = select.select([0] if driver < 0 else [0, driver], [], [])
        done = 0 in ready and os.read(0, len(_DONE)) == _DONE
    except OSError:
        done = False
    if not done:
        _clean_up(head["tag"], Path(head["folder"]), pickle.loads(providers))


def _read() -> bytes:
    (length,) = struct.unpack("!I", sys.stdin.buffer.read(4))
    return sys.stdin.buffer.read(length)


def _clean_up(tag: str, folder: Path, providers: Sequence[object]) -> None:
    from skyward.core.ledger import Ledger  # noqa: PLC0415  a reaper that has nothing to do stays small
    from skyward.core.sweep import sweep  # noqa: PLC0415

    def say(text: str) -> None:
        print(f"{time.strftime('%F %T')} {tag}: {text}", flush=True)  # noqa: T201  its log

    say("the driver has died; giving back what it bought")
    clean = True
    for provider in providers:
        for attempt in range(_TRIES):
            try:
                ended = sweep(provider, tag, tell=say)  # type: ignore[arg-type]
            except Exception as error:  # whatever it is, the machines still cost
                say(f"{error}")
                if attempt == _TRIES - 1:
                    clean = False
                time.sleep(_PAUSE)
            else:
                Ledger(folder).ended(provider.name, ended)  # type: ignore[attr-defined]
                break
    if clean:
        Ledger(folder).close_pool(tag)
        say("nothing is left")


if __name__ == "__main__":
    main()
