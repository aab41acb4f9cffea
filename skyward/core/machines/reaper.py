"""A small process that outlives the driver: when the driver dies, it terminates what the driver bought.

The pool starts ``python -m skyward.core.machines.reaper`` in a session of its own. On standard input it receives the
pool's tag, the driver's pid and the providers (pickled, since they may contain credentials), answers with one byte, and
waits. The end of the input without the word "done" means that the driver has died. It loads nothing else before that.
What it does then is logged in ``reaper.log`` next to the ledger.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyward.core.errors import ProvisioningError
from skyward.core.protocol.framing import frame, read_frame

if TYPE_CHECKING:
    from skyward.core.interfaces import Rental

__all__ = ["dismiss", "main", "start"]

_READY, _DONE = b"+", b"done"
_PAUSE = (5.0, 600.0)  # seconds before a termination that failed is retried: first, and max
_START = 60.0  # seconds within which it must be ready
_GIVE_UP = 86400.0  # seconds; long enough for a network to come back, so that no machine goes on costing money


def start(tag: str, folder: Path, providers: bytes) -> subprocess.Popen[bytes]:
    """Start a reaper for this process, and return when it is ready. End it with `dismiss`.

    Parameters
    ----------
    tag
        The pool's.
    folder
        The ledger's, where the reaper also writes its log.
    providers
        A pickled list of them.

    Raises
    ------
    ProvisioningError
        It did not start: nothing must be bought then.
    """
    package = Path(__file__).resolve().parents[3]
    # All that the driver can import, also from its script's folder: a provider's class may come from there.
    path = os.pathsep.join([str(package), *map(os.path.abspath, sys.path)])
    log_path = folder / "reaper.log"
    try:
        with os.fdopen(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            # It stays in this working directory: credentials may be in files that are named relative to it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "skyward.core.machines.reaper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # neither Ctrl-C nor the terminal's hangup must reach it
                env={**os.environ, "PYTHONPATH": path},
            )
        head = json.dumps({"tag": tag, "pid": os.getpid(), "folder": str(folder.absolute())}).encode()
        try:
            _hand_over(process, [head, providers])
        except BaseException:
            process.kill()
            process.communicate()
            raise
    except OSError as error:
        raise ProvisioningError(
            f"the process that terminates machines if this program dies did not start: {error}. See {log_path}"
        ) from error
    return process


def _hand_over(process: subprocess.Popen[bytes], parts: Sequence[bytes]) -> None:
    """Send a reaper its instructions, and wait until it has confirmed them."""
    assert process.stdin is not None
    assert process.stdout is not None
    for part in parts:
        process.stdin.write(frame(part))
    process.stdin.flush()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    ready = poll.poll(1000 * _START)
    if not ready or process.stdout.read(1) != _READY:
        raise OSError("it exited" if ready else f"it did not answer within {_START:g} s")
    process.stdout.close()


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """End a reaper, since nothing is left to do for it."""
    process.communicate(_DONE)


def main() -> None:
    """Wait for the driver to end, and clean up unless the driver has."""
    head = None
    try:
        read = partial(os.read, 0)  # unbuffered: a buffer would swallow the word that follows
        head = json.loads(read_frame(read))
        providers = read_frame(read)
        os.write(1, _READY)
        os.dup2(2, 1)  # from here on it only writes its log
    except (EOFError, BrokenPipeError):  # the driver died before it had the answer, and so bought nothing
        if head is not None:
            _forget(head["tag"], Path(head["folder"]))
        return
    if not _dismissed(head["pid"]):
        _clean_up(head["tag"], Path(head["folder"]), pickle.loads(providers))


def _forget(tag: str, folder: Path) -> None:
    """Remove the key of a pool for which nothing was bought."""
    from skyward.core.machines.ledger import Ledger  # noqa: PLC0415  a reaper that has nothing to do stays small

    Ledger(folder).close_unused(tag)


def _dismissed(pid: int) -> bool:
    """Wait until the driver dismisses us or dies; whether it dismissed us."""
    watched, limit = [0], None
    # A fork of the driver may hold the other end of the input, so the driver itself is watched as well.
    if hasattr(os, "pidfd_open"):
        try:
            watched.append(os.pidfd_open(pid))
        except ProcessLookupError:
            limit = 0.0  # it is dead already; what it wrote is there
        except OSError:
            pass  # this kernel lacks it: the end of the input must do
    ready, _, _ = select.select(watched, [], [], limit)
    return 0 in ready and os.read(0, len(_DONE)) == _DONE


def _clean_up(tag: str, folder: Path, providers: Sequence[Rental]) -> None:
    from skyward.core.machines.ledger import Ledger  # noqa: PLC0415  a reaper that has nothing to do stays small
    from skyward.core.machines.sweep import sweep  # noqa: PLC0415

    def log(text: str) -> None:
        print(f"{time.strftime('%F %T')} {tag}: {text}", flush=True)  # noqa: T201  its log

    def is_clean(provider: Rental) -> bool:
        try:
            # The driver may have died with an order on its way.
            sweep(provider, tag, Ledger(folder), listing_delay=provider.listing_delay, report=log)
        except Exception as error:  # whatever it is, the machines still cost money
            log(f"{type(error).__name__}: {error}")
            return False
        return True

    def clean(provider: Rental) -> bool:
        """Keep trying for a day; whether it succeeded."""
        pause, longest = _PAUSE
        end = time.monotonic() + _GIVE_UP
        while not is_clean(provider):
            if time.monotonic() > end:
                log(f"{provider.name}: gave up; what is left may still cost money. Try: skyward down {tag}")
                return False
            time.sleep(pause)
            pause = min(2 * pause, longest)
        return True

    log("the driver has died; terminating what it bought")
    # A provider that is down must not hold up the others.
    with ThreadPoolExecutor(max(1, len(providers)), "skyward-reaper") as threads:
        all_clean = all(list(threads.map(clean, providers)))
    if not all_clean:
        return
    if unseen := Ledger(folder).close_pool(tag, seen=True):
        log(f"not listed by any provider: {', '.join(unseen)}. Gone, or in another account. See: skyward down {tag}")
    else:
        log("nothing is left")


if __name__ == "__main__":
    main()
