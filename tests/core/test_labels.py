"""What functions are called in messages."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy
import pytest
from joblib import delayed

from skyward.core.function import Chunk
from skyward.core.labels import label
from skyward.joblib_ext.batch import Batch


class Model:
    def fit(self) -> None: ...

    @classmethod
    def load(cls) -> None: ...

    def __call__(self) -> None: ...


def train(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (train, "train"),
        (functools.partial(train, 1), "train"),
        (functools.partial(functools.partial(Model().fit), 1), "Model.fit"),
        (functools.partial(Model()), "Model"),
        (functools.lru_cache(train), "train"),
        (Model.load, "Model.load"),
        (Model, "Model"),
        (lambda: None, "<lambda>"),
        (numpy.add, "add"),
        ([].append, "list.append"),
        (operator.itemgetter(0), "itemgetter"),
    ],
)
def test_a_function_is_named(function: object, name: str) -> None:
    assert label(function) == name


def test_so_are_those_in_batches_and_chunks() -> None:
    partial = functools.partial(train, 1)
    assert label(Batch([delayed(partial)(2)], 0)) == "train"
    assert label(Batch([delayed(partial)(2)] * 3, 0)) == "train"
    assert label(Chunk(partial, [(1,), (2,)])) == "train"
