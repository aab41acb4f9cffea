"""scikit-learn's callbacks in a slot: connections to the driver end with the call that they were made for.

A callback in a worker keeps a connection for each of its driver's listeners, for as long as the worker lives, and the
driver a descriptor and a thread for each, more where the worker is on another machine. joblib's own workers end when
they have been idle for a while; ours live as long as the pool.
"""

from __future__ import annotations

import sys
import threading

__all__ = ["begin_call"]

_call = 0


def begin_call(number: int) -> None:
    """A batch of this call runs now: the connections of other calls are closed, and made again where they are needed.

    Where slots are threads nobody can tell whose a connection is, and all stay.
    """
    global _call  # noqa: PLW0603 - a process runs the batches of one call at a time
    if number == _call or threading.current_thread() is not threading.main_thread():
        return
    _call = number
    connections = getattr(sys.modules.get("sklearn.callback._transport"), "_worker_connections", None)
    while connections:
        connections.popitem()[1].close()
