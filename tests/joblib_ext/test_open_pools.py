"""Which pool a name means, in whatever order and threads pools are entered and left."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import pytest

from skyward.core.errors import PoolNotActive
from skyward.core.pool import Compute
from skyward.joblib_ext import open_pools


class Pool:
    """What is asked of one."""

    is_active = True


@pytest.fixture
def enter() -> Callable[..., ExitStack]:
    def enter(pool: Pool, *, plugged: bool = False, on_last: Callable[[], object] = lambda: None) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(open_pools.entered(cast("Compute", pool), plugged=plugged, on_last=on_last))
        return stack

    return enter


def in_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_threads_own_innermost_pool_is_meant_and_else_the_last(enter: Callable[..., ExitStack]) -> None:
    mine, inner, other = Pool(), Pool(), Pool()
    with enter(mine):
        assert in_thread(open_pools.find) is mine
        with enter(inner):
            assert open_pools.find() is inner
        theirs = in_thread(lambda: enter(other))
        assert open_pools.find() is mine
        assert in_thread(open_pools.find) is other
        other.is_active = False
        assert in_thread(open_pools.find) is mine
        theirs.close()
    assert open_pools.find() is None


def test_pools_end_in_any_order_and_the_last_is_announced(enter: Callable[..., ExitStack]) -> None:
    ends: list[bool] = []
    first, second = (enter(Pool(), on_last=lambda: ends.append(open_pools.is_any_open())) for _ in range(2))
    assert open_pools.is_any_open()
    first.close()
    assert ends == []
    second.close()
    assert ends == [False]


def test_a_pool_that_nobody_holds_is_collected(enter: Callable[..., ExitStack]) -> None:
    pool = Pool()
    known = weakref.ref(pool)
    with enter(pool):
        del pool
        gc.collect()
        assert known() is None
        assert open_pools.find() is None


def test_a_context_takes_the_plugged_pool_along(enter: Callable[..., ExitStack]) -> None:
    pool = Pool()
    with enter(Pool()):
        assert open_pools.inherited() is None
    with enter(pool, plugged=True):
        context = contextvars.copy_context()
        assert in_thread(open_pools.inherited) is None
        assert in_thread(lambda: context.run(open_pools.inherited)) is pool
    assert open_pools.inherited() is None


def test_who_plugs_a_pool_in_needs_no_warning(enter: Callable[..., ExitStack]) -> None:
    pool = Pool()
    with enter(pool):
        entry = open_pools.current_entry()
        assert entry is not None
        assert not entry.warned
        with enter(pool, plugged=True):
            assert entry.warned


def test_none_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PoolNotActive, match="use the pool as a context manager"):
        open_pools.current()
