"""Who has a token may use one function's cache, or one `Memory`, and gets at nothing else."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

import pytest
from joblib import Memory

import skyward as sky
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.kept_calls import KeptCalls
from skyward.core.tasks.pool_context import PoolContext
from skyward.joblib_ext import node_cache
from skyward.joblib_ext.cache_desk import CacheDesk, desk_of
from skyward.joblib_ext.node_cache import DriverStore, SharedStore
from tests.joblib_ext.conftest import VERSION
from tests.joblib_ext.counted import Counted

if VERSION < (1, 4):
    pytest.skip("joblib 1.4 has what the lookup needs", allow_module_level=True)

HASH = "0" * 32


def nothing(*_: Any) -> Any:
    raise AssertionError("no call has a job here")


@pytest.fixture(params=["any", "data"])
def context(request: pytest.FixtureRequest) -> Iterator[PoolContext]:
    answers = Answers(Reader(Trusted()) if request.param == "data" else None)
    context = PoolContext(False, answers, KeptCalls(nothing, nothing, nothing, nothing))
    yield context
    context.at_end.close()


class Node:
    """Speaks to a desk as a slot does, or as it should not."""

    def __init__(self, desk: CacheDesk, store: Any) -> None:
        self.token = store.grant.token
        self.connection: Connection = Client(desk.address)

    def ask(self, what: str, *values: Any, token: Any = None) -> Any:
        self.connection.send((what, self.token if token is None else token, "me", *values))
        return self.connection.recv()


def test_a_token_is_for_one_function(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    square(3)
    function, arguments = square.func_id, square._get_args_id(3)
    desk = desk_of(context)
    assert desk_of(context) is desk
    store = desk.grant(square.store_backend, function)
    assert isinstance(store, DriverStore)
    assert store.grant.token not in repr(store.grant)
    node = Node(desk, store)
    assert node.ask("look", function, arguments)[:3] == (
        "ok",
        square.store_backend.get_cached_func_code([function]),
        True,
    )
    other = f"{function}2"
    for request in [
        ("look", other, arguments),
        ("look", f"{function}/../{other}", arguments),
        ("look", "/etc", arguments),
        ("look", function, "../../x"),
        ("look", function, arguments, "../../x"),
        ("look", function),
        ("look", 3, 4),
        ("load", function, arguments.upper() + "."),
        ("code", ".."),
        ("set code", other, "x"),
        ("clear", function, arguments, "../.."),
        ("clear", "."),
        ("clear",),
        ("limit", None, 0, None),
        ("note", other, arguments, "{}"),
        ("turn", other, arguments, ""),
        ("what", function),
    ]:
        assert node.ask(*request)[0] == "no", request
    assert node.ask("look", function, arguments, token="1" * 32) == ("no", "the token or the request is unknown")
    assert square.check_call_in_cache(3)


def test_a_memory_that_is_sent_is_all_of_it(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    square(3)
    node = Node(desk_of(context), desk_of(context).grant(counted.memory.store_backend, None))
    assert node.ask("look", square.func_id, square._get_args_id(3))[2]
    for function in ("../other", "/etc", ".", ""):
        assert node.ask("clear", function)[0] == "no"
    assert node.ask("limit", None, 0, None) == ("ok",)
    assert not square.check_call_in_cache(3)
    assert node.ask("clear") == ("ok",)


def test_what_is_no_request_ends_the_connection(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    store = desk_of(context).grant(square.store_backend, square.func_id)
    for message in (b"", b"nonsense", pickle.dumps(Path("x")), pickle.dumps(("look",)), pickle.dumps(("look", [], 1))):
        node = Node(desk_of(context), store)
        node.connection.send_bytes(message)
        with pytest.raises((EOFError, ConnectionResetError)):
            node.connection.recv()
    for sizes, piece in (((1 << 60,), b"x"), ((5,), b""), ((5,), "text")):
        node = Node(desk_of(context), store)
        node.connection.send(("keep", node.token, "me", square.func_id, HASH, "", sizes))
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            node.connection.send(piece)
        with pytest.raises((EOFError, ConnectionResetError)):
            node.connection.recv()


class Evil:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Evil, "ran", True)


def test_what_untrusted_nodes_send_is_kept_as_data(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    square(3)
    source = square.func_code_info[0]
    node = Node(desk_of(context), desk_of(context).grant(square.store_backend, square.func_id))

    def keep(value: Any, source: str = source) -> Any:
        data = pickle.dumps(value, protocol=5)
        node.connection.send(("keep", node.token, "me", square.func_id, HASH, source, (len(data),)))
        node.connection.send(data)
        return node.connection.recv()

    assert keep([1, 2.0, "x"]) == ("ok", True)
    assert square.store_backend.load_item((square.func_id, HASH), verbose=0) == [1, 2.0, "x"]
    assert node.ask("note", square.func_id, HASH, '{"duration": 1.0}') == ("ok",)
    assert square.store_backend.get_metadata((square.func_id, HASH)) == {"duration": 1.0}
    assert keep(4, "def square(): another source") == ("ok", False)
    Evil.ran = False
    if "unpickled" in repr(context.answers):
        assert keep(Evil()) == ("ok", True)
        assert Evil.ran, "trusted nodes may do that anyway"
    else:
        with pytest.warns(UserWarning, match="setattr, which is not data.*it is not cached"):
            assert keep(Evil()) == ("ok", False)
        assert not Evil.ran
    assert square.store_backend.contains_item((square.func_id, HASH))


def test_stores_come_home(context: PoolContext, counted: Counted) -> None:
    store = counted.memory.store_backend
    for shared in (False, True):
        context.shared = shared
        sent = desk_of(context).grant(store, None)
        assert type(sent) is (SharedStore if shared else DriverStore)
        assert Path(sent.location).is_absolute()
        assert pickle.loads(pickle.dumps(sent)) is store
    address = desk_of(context).address
    assert address in repr(sent.grant)
    desk_of(context).close()
    assert not Path(address).exists()
    assert address not in node_cache.HOMES


def test_turns_end_with_the_connection(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    desk = desk_of(context)
    store = desk.grant(square.store_backend, square.func_id)
    call = square.func_id, HASH, "source"
    first, second = Node(desk, store), Node(desk, store)
    assert first.ask("turn", *call) == ("ok", "compute")
    second.connection.send(("turn", second.token, "you", *call))
    assert not second.connection.poll(0.05)
    first.connection.close()
    assert second.connection.recv() == ("ok", "compute")
    third = Node(desk, store)
    third.connection.send(("turn", third.token, "she", *call))
    assert not third.connection.poll(0.05)
    assert second.ask("leave", *call) == ("ok",)
    assert second.ask("leave", *call) == ("ok",), "no harm"
    assert third.connection.recv() == ("ok", "compute")
    second.connection.close()
    desk.close()


def test_processes_that_would_wait_for_each_other_do_not(context: PoolContext, counted: Counted) -> None:
    square = counted.square()
    desk = desk_of(context)
    store = desk.grant(square.store_backend, square.func_id)
    one, two = (square.func_id, HASH, "one"), (square.func_id, HASH, "two")
    me, you = Node(desk, store), Node(desk, store)
    assert me.ask("turn", *one) == ("ok", "compute")
    you.connection.send(("turn", you.token, "you", *two))
    assert you.connection.recv() == ("ok", "compute")
    you.connection.send(("turn", you.token, "you", *one))
    me.connection.send(("turn", me.token, "me", *two))
    (crossed,) = wait([me.connection, you.connection], 5)
    assert isinstance(crossed, Connection)
    assert crossed.recv() == ("ok", "crossed")


@pytest.mark.slow
def test_a_memory_of_another_kind_is_sent_as_it_is(pool: sky.Compute, counted: Counted) -> None:
    assert pool.submit(lambda: Memory(None).cache(abs)(-3)).result() == 3
    nowhere = Memory(None)
    assert pool.submit(lambda: nowhere.cache(abs)(-3)).result() == 3
