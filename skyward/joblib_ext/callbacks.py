"""scikit-learn's callbacks in a slot: their connections to the driver end with the call they were made for.

A callback in a worker keeps a connection to each of its driver's listeners as long as the worker lives, and the driver
keeps a file descriptor and a thread for each, or more if the worker is on another machine. joblib's own workers end
after some idle time; ours live as long as the pool.
"""

from __future__ import annotations

import sys
import threading

__all__ = ["begin_call"]

_call = 0


def begin_call(number: int) -> None:
    """Close the connections of other calls, since a batch of this call runs now; they are reopened when needed.

    If slots are threads, it is unknown which slot a connection belongs to, and all stay open.
    """
    global _call  # noqa: PLW0603 - a process runs the batches of one call at a time
    if number == _call or threading.current_thread() is not threading.main_thread():
        return
    _call = number
    connections = getattr(sys.modules.get("sklearn.callback._transport"), "_worker_connections", None)
    while connections:
        connections.popitem()[1].close()
