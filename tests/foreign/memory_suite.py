"""joblib's own tests of `Memory`, of the installed joblib: each call of a cached function is one of the pool.

These tests count calls in lists of their own process, so a function that is sent calls back: what runs in the slot
asks this process to run the function itself, and returns what that returns. Everything else is as for any cached
function: looked up here, one of several equal calls at a time, a task for what is missing, kept here. What the tests do
with `call`, `clear`, `check_call_in_cache` and stores of their own is joblib's business, beside ours on the same files.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import types
from multiprocessing.connection import Client, Listener
from typing import Any

import cloudpickle
import pytest
from joblib.memory import MemorizedFunc

from skyward.core.payload import pickling
from skyward.joblib_ext.slot_backend import NAME
from tests.foreign import pool
from tests.foreign.runner import Suite, select

OURS = os.environ.get("FOREIGN_BACKEND", NAME) == NAME

LEFT = {
    "*::test_*async*": "coroutines are not for slots, and their functions are not looked up",
    "*::test_no_memory*": "without a store there is nothing to look up",
}

_CHANGES = "the function changes a dict of its caller's, of which a task has a copy"
FAILS = {
    "*::test_memory_file_modification*": "a slot has the module as it was before it was changed, which is an error",
    "*::*test_constant_cache_validation_callback*": _CHANGES,
    "*::*test_memory_only_cache_long_run*": _CHANGES,
    "*::*test_memory_expires_after*": _CHANGES,
    "*::*test_call_method_memorized*": _CHANGES,
}


def suite() -> Suite:
    tests = ["--noconftest", "--pyargs", "joblib.test.test_memory"]
    return Suite("tests.foreign.memory_suite", tests, FAILS, least=55, left=LEFT, peer="joblib")


# --- functions that call back ---


class Back:
    """A function of the tests, in a slot."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.number = address, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Client(self.address) as connection:
            connection.send_bytes(cloudpickle.dumps((self.number, args, kwargs)))
            fine, outcome = pickle.loads(connection.recv_bytes())
        if not fine:
            raise outcome
        return outcome


class Here:
    """Runs the functions for those in slots."""

    def __init__(self) -> None:
        self._functions: list[Any] = []
        self._listener = Listener(tempfile.mktemp(prefix="foreign-"))
        threading.Thread(target=self._serve, daemon=True).start()

    def reduce(self, function: types.FunctionType, _: object) -> Any:
        if not function.__code__.co_filename.endswith("test_memory.py"):
            return None
        self._functions.append(function)
        return Back, (self._listener.address, len(self._functions) - 1)

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as connection:
                number, args, kwargs = pickle.loads(connection.recv_bytes())
                try:
                    answer = True, self._functions[number](*args, **kwargs)
                except Exception as error:
                    answer = False, error
                connection.send_bytes(cloudpickle.dumps(answer))


# --- the plugin ---


def pytest_configure(config: pytest.Config) -> None:
    for name in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{name}: of joblib's")
    if not OURS:
        return
    opened = pool.make().start()
    config.add_cleanup(lambda: opened.close(cancel=True))
    pickling.POOL_REDUCERS[types.FunctionType] = Here().reduce

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it is joblib's
        return opened.submit(self, *args, **kwargs).result()

    def call_and_shelve(self: Any, *args: Any, **kwargs: Any) -> Any:
        return opened.submit(self.call_and_shelve, *args, **kwargs).result()

    MemorizedFunc.__call__, MemorizedFunc.call_and_shelve = __call__, call_and_shelve


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, lambda _: True)
