"""Whether a pickle refers to a module that nodes can't get."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.code.references import refers


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    it = types.ModuleType("made_up")
    exec("def twice(x): return 2 * x\nclass Kind: pass", it.__dict__)
    sys.modules["made_up"] = it
    yield it
    del sys.modules["made_up"]


def test_functions_classes_and_modules_are_found(module: types.ModuleType) -> None:
    for value in (module.twice, [1, {"a": module.Kind()}], (module.Kind, module.Kind), lambda: module.twice(1)):
        assert refers(cloudpickle.dumps(value), ["other", "made_up"]) == "made_up", value
    inner = cloudpickle.dumps(module.twice)
    assert refers(cloudpickle.dumps([inner, 1]), ["made_up"]) == "made_up"


def test_a_text_of_that_name_is_no_reference() -> None:
    values = [
        "made_up",
        "made_up.x",
        b"made_up",
        {"made_up": "subimport"},
        ("made_up", "made_up"),
        b"x" * 99 + b"made_up",
    ]
    for value in values:
        assert refers(cloudpickle.dumps(value), ["made_up"]) is None, value
    assert refers(cloudpickle.dumps([len, "made_up"]), ["made_up"]) is None
    assert refers(cloudpickle.dumps(len), []) is None


@given(st.binary(max_size=100))
def test_bytes_that_are_no_pickle(data: bytes) -> None:
    assert refers(data + b"made_up", ["made_up"]) is None
