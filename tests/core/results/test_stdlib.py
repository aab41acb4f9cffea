"""Python's own values come back as they were."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import pathlib
import pickle
import random
import types
import uuid
import zoneinfo

import cloudpickle
import pytest

from skyward.core.results.rules import RefusedPickle
from tests.core.results.hostile import assemble, call, name, plain, read

PARIS = zoneinfo.ZoneInfo("Europe/Paris")

VALUES = [
    *(datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), datetime.time(3, 4)),
    *(datetime.datetime(2020, 7, 2, tzinfo=PARIS), datetime.timedelta(1, 2, 3)),
    datetime.timezone(datetime.timedelta(0, 60)),
    *(decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=5), complex(1, 2), 2**80),
    *(pathlib.Path("/a/b"), pathlib.PureWindowsPath("c:/x"), pathlib.PurePosixPath("a")),
    *(collections.OrderedDict(b=1, a=2), collections.Counter("abca"), collections.deque([1, 2], 5)),
    *(collections.UserDict(a=1), collections.UserList([1]), collections.ChainMap({"a": 1})),
    *(types.SimpleNamespace(a=[1]), array.array("d", [1, 2]), range(1, 9, 2), slice(1, None), bytearray(b"abc")),
    *(frozenset([1]), {(1, 2)}, type(None), Ellipsis, NotImplemented, int, dict),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back(value):
    for dump in (pickle.dumps, cloudpickle.dumps):
        back = read(dump([value], protocol=5))[0]
        assert back == value
        assert type(back) is type(value)
    assert getattr(back, "maxlen", 0) == getattr(value, "maxlen", 0)


def test_a_defaultdict_keeps_its_factory():
    back = read(pickle.dumps(collections.defaultdict(list, a=[1]), protocol=5))
    back["b"].append(2)
    assert back == {"a": [1], "b": [2]}


def test_a_generator_goes_on_where_it_was():
    generator = random.Random(3)
    generator.random()
    assert read(pickle.dumps(generator, protocol=5)).random() == generator.random()


@pytest.mark.parametrize(
    "data",
    [
        call("array", "_array_reconstructor", name("collections", "deque"), plain("b"), b"K\x01", plain(b"a")),
        call("builtins", "getattr", name("zoneinfo", "ZoneInfo"), plain("_unpickle")) + plain((5, True)) + b"R",
        call("collections", "Counter", plain([1])),
        call("collections", "deque", plain([1, 2])),
        call("fractions", "Fraction", plain("1e999999999")),
        call("builtins", "bytearray", plain(10**12)),
    ],
)
def test_calls_with_what_they_never_get_are_refused(data):
    with pytest.raises(RefusedPickle):
        read(assemble(data))


def test_zones_are_no_files():
    with pytest.raises((ValueError, zoneinfo.ZoneInfoNotFoundError)):
        read(
            assemble(
                call("builtins", "getattr", name("zoneinfo", "ZoneInfo"), plain("_unpickle"))
                + plain(("../../etc/passwd", True))
                + b"R"
            )
        )
