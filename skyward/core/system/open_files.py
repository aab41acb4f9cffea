"""The limit on open files of a process; connections, pipes and arrays in shared memory count as files, too.

Limits are often low (1,024, or 64 on login nodes), and a process that reaches its limit fails in some unrelated place.
So callers count in advance what they will need.
"""

from __future__ import annotations

import errno
import os
import resource

__all__ = ["advice", "allow", "left", "limit"]

_MANY = 1 << 20  # where there is no limit


def limit() -> int:
    """Return how many files this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MANY if soft == resource.RLIM_INFINITY else soft


def left() -> int:
    """Return how many more it may open now; open files are not subtracted where they can't be counted."""
    try:
        used = len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - one is the folder itself
    except OSError as error:
        return 0 if error.errno in (errno.EMFILE, errno.ENFILE) else limit()
    return max(0, limit() - used)


def advice(count: int) -> str:
    """Say what to do so that this process may open `count` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(1024, 2 * (soft - left() + count))
    if hard == resource.RLIM_INFINITY or wanted <= hard:
        return f"raise its limit of {soft} before Python starts (ulimit -n {wanted})"
    return f"its limit of {soft} must be {wanted} or more, but the system allows {hard} (ulimit -Hn, limits.conf)"


def allow(count: int) -> int:
    """Raise this process's limit to `count`, as far as allowed, and return the limit. It is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()
