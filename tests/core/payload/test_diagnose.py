"""What does not pickle is named, wherever it is."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

import skyward as sky
from skyward.core.errors import PayloadError
from skyward.core.payload import pickling
from skyward.core.tasks.futures import TaskFuture


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


def test_what_says_that_it_can_not_be_sent_is_the_culprit_itself() -> None:
    """Not what it happens to hold."""
    future = TaskFuture[int](lambda _: None, 1)
    with pytest.raises(PayloadError, match=r"call\[0\] \(a skyward\S*TaskFuture\): .*give the task its result\(\)"):
        pickling.dumps([future], "call")
    pool = sky.Compute()
    with pytest.raises(PayloadError, match=r"call\['pool'\] \(a skyward\S*Compute\): .*use joblib.Parallel without it"):
        pickling.dumps({"pool": pool}, "call")


def test_what_is_sent_by_value_is_no_culprit() -> None:
    namespace: dict[str, object] = {"__name__": "__main__", "lock": threading.Lock()}
    exec("import functools\n@functools.cache\ndef cached(): return 1\ndef task(): return cached(), lock", namespace)
    with pytest.raises(PayloadError, match=r"call -> lock \(global\) \(a _thread.lock\)"):
        pickling.dumps(namespace["task"], "call")
