"""What Linux says about processes, for tests that count, find or end some."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["alive", "cmdline", "comm", "descendants", "rclones"]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def comm(pid: int) -> str:
    """Its name, such as "skyward-agent"; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def cmdline(pid: int) -> list[bytes]:
    """Its command; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def descendants(pid: int) -> set[int]:
    """Return all processes below one.

    Asked of each thread: going through all processes of a machine, before and after each test, takes 20 ms.
    """
    found: set[int] = set()
    todo = [pid]
    while todo:
        current = todo.pop()
        with suppress(OSError):  # it has just ended
            for thread in Path(f"/proc/{current}/task").iterdir():
                with suppress(OSError):  # the thread has
                    new = {int(child) for child in (thread / "children").read_text().split()}
                    todo += new - found
                    found |= new
    return found


def rclones(pid: int) -> list[int]:
    """The rclones below a process that serve a bucket, without their guards."""
    return [each for each in descendants(pid) if cmdline(each)[1:2] == [b"rcd"]]
