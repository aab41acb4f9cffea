"""Classes that went to a node by value come back by name."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from skyward.core import owned, payload


@pytest.fixture
def installed():
    before = list(payload.CLASS_REDUCERS)
    owned.install()
    owned.install()
    yield payload.CLASS_REDUCERS
    payload.CLASS_REDUCERS[:] = before


def test_a_class_that_was_sent_comes_back_by_name(installed):
    kind = type("Local", (), {"__module__": "__main__", "code": lambda: "secret-code"})
    cloudpickle.dumps(kind)  # it is sent, and known from now on
    head, _ = payload.dumps([kind, kind()])
    assert b"secret-code" not in head
    assert pickle.loads(head)[0] is kind
    assert len([reduce for reduce in installed if reduce is owned._reduce]) == 1


def test_an_exception_of_such_a_class_too(installed):
    kind = type("Trouble", (Exception,), {"__module__": "__main__"})
    cloudpickle.dumps(kind)
    (head,) = payload.dump_error(kind("x"), as_data=True)
    assert type(payload.load_error(head)) is kind


def test_one_that_was_never_here_is_not_found():
    assert owned.find("0123") is None
    with pytest.raises(AttributeError, match="Local"):
        owned.find_owned("0123", "__main__", "Local")
