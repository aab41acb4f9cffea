"""Which functions of modules a pool's tasks have the right to cache; what it does for them is in test_node_cache."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import pytest

import skyward as sky
from skyward.core.payload.forerunners import FORERUNNERS
from skyward.joblib_ext import module_caches, node_cache
from skyward.joblib_ext.module_caches import Rights
from tests.joblib_ext.conftest import VERSION
from tests.joblib_ext.counted import Counted

if VERSION < (1, 4):
    pytest.skip("joblib 1.4 has what the lookup needs", allow_module_level=True)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = types.ModuleType("of_the_user")
    monkeypatch.setitem(sys.modules, "of_the_user", made)
    monkeypatch.setattr(node_cache, "GRANTED", {})
    monkeypatch.setattr(module_caches, "_taken", [])
    return made


def rights(pool: sky.Compute) -> Rights | None:
    (made,) = (make(pool.dispatcher.context) for make in FORERUNNERS)
    assert made is None or isinstance(made, Rights)
    return made


def granted(given: Rights | None) -> set[tuple[str, str]]:
    if given is not None:
        pickle.loads(pickle.dumps(given))
        assert given.key.hex() in repr(given)
    return set(node_cache.GRANTED)


@pytest.mark.slow
def test_they_are_those_of_modules(pool: sky.Compute, counted: Counted, module: Any) -> None:
    before = rights(pool)
    square = counted.square()
    square.func.__module__, square.func.__qualname__ = "of_the_user", "square"
    module.square = module.same = square
    module.borrowed = counted.square()
    sys.modules["of_the_user.part"] = types.ModuleType("of_the_user.part")  # an import is noticed, an attribute is not
    try:
        after = rights(pool)
        assert after is not None
        assert after is not before
        assert rights(pool) is after
        assert ("of_the_user", "square") in granted(after)
        assert node_cache.GRANTED["of_the_user", "square"] is square.store_backend, "here, it is what it was"
        other = counted.square()
        other.func.__module__, other.func.__qualname__ = "of_the_user", "square"
        module.square = other
        assert rights(pool) is not after, "it was replaced"
    finally:
        del sys.modules["of_the_user.part"]
