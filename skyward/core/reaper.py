"""A small process that outlives the driver: when the driver dies, it gives back what the driver bought.

``python -m skyward.core.reaper``, started by the pool in a session of its own. On its standard input it gets the pool's
tag, the driver's pid and the providers, pickled, since credentials may stand in them; then it waits. The end of the
input without the word "done" means that the driver has died. It loads nothing else before that. What it then does
stands in ``reaper.log`` beside the ledger.
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
from typing import TYPE_CHECKING

from skyward.core.errors import ProvisioningError

if TYPE_CHECKING:
    from skyward.core.interfaces import Rental

__all__ = ["dismiss", "main", "start"]

_DONE = b"done"
_PAUSE = (5.0, 600.0)  # seconds before what could not be given back is tried again: at first, and at most
_GIVE_UP = 86400.0  # seconds; a day without a network must not mean a machine that costs for ever


def start(tag: str, folder: Path, providers: bytes) -> subprocess.Popen[bytes]:
    """Start a reaper for this process; `providers` is a pickled list. End it with `dismiss`.

    Raises
    ------
    ProvisioningError
        It did not start: nothing must be bought then.
    """
    package = Path(__file__).resolve().parents[2]
    # All that the driver finds, also beside its script: a provider's class may come from there.
    path = os.pathsep.join([str(package), *map(os.path.abspath, sys.path)])
    log_path = folder / "reaper.log"
    try:
        with os.fdopen(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
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
        head = json.dumps({"tag": tag, "pid": os.getpid(), "folder": str(folder.absolute())}).encode()
        for part in (head, providers):
            process.stdin.write(struct.pack("!I", len(part)) + part)
        process.stdin.flush()
    except OSError as error:
        raise ProvisioningError(
            f"the process that gives machines back if this one dies did not start: {error}. See {log_path}"
        ) from error
    return process


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """Nothing is left to do for it."""
    process.communicate(_DONE)


def main() -> None:
    """Wait for the driver's end, and clean up unless it did."""
    try:
        head = json.loads(_read())
        providers = _read()
    except EOFError:  # the driver died before it had told what to do, and so before it bought anything
        return
    if not _dismissed(head["pid"]):
        _clean_up(head["tag"], Path(head["folder"]), pickle.loads(providers))


def _dismissed(pid: int) -> bool:
    """Wait until the driver has spoken or died; whether it said that nothing is left to do."""
    watched, limit = [0], None
    # A fork of the driver may hold the other end of the input, so the driver itself is watched as well.
    if hasattr(os, "pidfd_open"):
        try:
            watched.append(os.pidfd_open(pid))
        except ProcessLookupError:
            limit = 0.0  # it has died already; what it has said is there
        except OSError:
            pass  # this kernel does not have it: the end of the input must do
    ready, _, _ = select.select(watched, [], [], limit)
    return 0 in ready and os.read(0, len(_DONE)) == _DONE


def _read() -> bytes:
    (length,) = struct.unpack("!I", _exactly(4))
    return _exactly(length)


def _exactly(count: int) -> bytes:
    """So many bytes of the input and no more: a buffer would swallow the word that follows."""
    data = b""
    while len(data) < count:
        if not (more := os.read(0, count - len(data))):
            raise EOFError
        data += more
    return data


def _clean_up(tag: str, folder: Path, providers: Sequence[Rental]) -> None:
    from skyward.core.ledger import Ledger  # noqa: PLC0415  a reaper that has nothing to do stays small
    from skyward.core.sweep import sweep  # noqa: PLC0415

    def say(text: str) -> None:
        print(f"{time.strftime('%F %T')} {tag}: {text}", flush=True)  # noqa: T201  its log

    def is_clean(provider: Rental) -> bool:
        try:
            # The driver may have died with an order on its way.
            ended = sweep(provider, tag, settle=provider.settle, tell=say)
            Ledger(folder).ended(provider.name, ended)
        except Exception as error:  # whatever it is, the machines still cost
            say(f"{type(error).__name__}: {error}")
            return False
        return True

    say("the driver has died; giving back what it bought")
    pause, most = _PAUSE
    end = time.monotonic() + _GIVE_UP
    waiting = list(providers)
    while waiting := [provider for provider in waiting if not is_clean(provider)]:
        if time.monotonic() > end:
            say(f"gave up; what is left may still cost. Try: skyward down {tag}")
            return
        time.sleep(pause)
        pause = min(2 * pause, most)
    Ledger(folder).close_pool(tag)
    say("nothing is left")


if __name__ == "__main__":
    main()
