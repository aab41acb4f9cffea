"""What a future gets of what a node says."""

from __future__ import annotations

import sys

import pytest

from skyward.core.errors import PayloadError
from skyward.core.payload import exceptions, pickling
from skyward.core.protocol.messages import Failed, Failure
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from skyward.core.tasks.answers import Answers

TRUSTING, WARY = Answers(), Answers(Reader(Trusted()))


class Exits:
    def __reduce__(self):
        return sys.exit, (3,)


def failed(reason=Failure.RAISED, missing=""):
    return Failed(1, 0.0, reason.value, "Error", missing)


@pytest.mark.parametrize("answers", [TRUSTING, WARY])
def test_a_result(answers):
    head, buffers = pickling.dumps([1, "a"])
    assert answers.result("f on n1", [head, *buffers]) == ([1, "a"], None)


def test_one_that_can_not_be_loaded():
    head, _ = pickling.dumps(Exits())
    _, error = TRUSTING.result("f on n1", [head])
    assert isinstance(error, PayloadError)
    assert isinstance(error.__cause__, SystemExit)
    _, error = WARY.result("f on n1", [head])
    assert isinstance(error, PayloadError)
    assert "the result of f on n1 is not accepted: it refers to sys.exit" in str(error)
    for answers in (TRUSTING, WARY):
        assert "can't be loaded here" in str(answers.result("f on n1", [b"?"])[1])


@pytest.mark.parametrize("answers", [TRUSTING, WARY])
def test_an_exception_of_the_tasks_own_is_left_alone(answers):
    heads = exceptions.dump(ValueError("x"))
    error = answers.failure(failed(), heads, here=False)
    assert (type(error), error.args, getattr(error, "__notes__", [])) == (ValueError, ("x",), [])


@pytest.mark.parametrize("answers", [TRUSTING, WARY])
def test_a_missing_module_in_a_task_gets_a_note(answers):
    heads = exceptions.dump(ModuleNotFoundError("No module named 'pytest'", name="pytest"))
    error = answers.failure(failed(missing="pytest"), heads, here=False)
    assert type(error) is ModuleNotFoundError
    assert "pytest==" in error.__notes__[0]


def test_a_call_that_needs_one_gets_an_error_that_says_what_to_do():
    problem = PayloadError("No module named 'pytest' on node n1")
    problem.__cause__ = ModuleNotFoundError("No module named 'pytest'")
    error = TRUSTING.failure(failed(Failure.UNLOADABLE, "pytest"), exceptions.dump(problem), here=False)
    assert type(error) is PayloadError
    assert str(error).startswith("No module named 'pytest' on node n1. Here it comes from pytest==")
    assert isinstance(error.__cause__, ModuleNotFoundError)
