"""Classes that went to a node by value come back by name."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from skyward.core.payload import driver_classes, exceptions, pickling


@pytest.fixture
def installed():
    before = list(pickling.CLASS_REDUCERS)
    driver_classes.install()
    driver_classes.install()
    yield pickling.CLASS_REDUCERS
    pickling.CLASS_REDUCERS[:] = before


def test_a_class_that_was_sent_comes_back_by_name(installed):
    kind = type("Local", (), {"__module__": "__main__", "code": lambda: "secret-code"})
    cloudpickle.dumps(kind)  # it is sent, and known from now on
    head, _ = pickling.dumps([kind, kind()])
    assert b"secret-code" not in head
    assert pickle.loads(head)[0] is kind
    assert len([reduce for reduce in installed if reduce is driver_classes._reduce]) == 1


def test_an_exception_of_such_a_class_too(installed):
    kind = type("Trouble", (Exception,), {"__module__": "__main__"})
    cloudpickle.dumps(kind)
    (head,) = exceptions.dump(kind("x"), as_data=True)
    assert type(exceptions.load(head)) is kind


def test_one_that_was_never_here_is_not_found():
    assert driver_classes.find("0123") is None
    with pytest.raises(AttributeError, match="Local"):
        driver_classes.find_owned("0123", "__main__", "Local")
