"""What does not pickle is named, wherever it is."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from skyward.core.errors import PayloadError
from skyward.core.payload import pickling


class Node:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


def test_the_culprit_is_named_wherever_it_sits() -> None:
    """In attributes, containers, closures, globals, partials, methods."""
    lock = threading.Lock()
    deep = Node(estimator=Node(steps=[("a", 1), ("b", Node(_logger=lock))]))
    cases = {
        "it.estimator.steps[1][1]._logger (a _thread.lock)": deep,
        "it['k'] (a _thread.lock)": {"k": lock},
        "it -> lock (closed over) (a _thread.lock)": lambda: lock,
        "it.args[0] (a _thread.lock)": functools.partial(print, lock),
        "it.__self__._logger (a _thread.lock)": Node(_logger=lock).__dict__ and Holder(lock).method,
    }
    for where, value in cases.items():
        with pytest.raises(PayloadError) as caught:
            pickling.dumps(value, "it")
        assert where in str(caught.value)


class Holder:
    def __init__(self, lock: Any) -> None:
        self._logger = lock

    def method(self) -> None:
        pass
