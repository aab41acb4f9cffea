"""From what a node says of a task to what its future gets: a result, or an exception with words that help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skyward.core import lacking, payload
from skyward.core.errors import PayloadError
from skyward.core.messages import Failed, Failure
from skyward.core.results.reader import Reader

__all__ = ["Answers"]


class Answers:
    """Reads the answers of one pool's nodes.

    Parameters
    ----------
    reader
        Reads them as data; None to unpickle them, as one does with what one trusts.
    """

    def __init__(self, reader: Reader | None = None) -> None:
        self._reader = reader

    def __repr__(self) -> str:
        return f"<Answers {'unpickled' if self._reader is None else self._reader}>"

    def result(self, whose: str, buffers: Sequence[Any]) -> tuple[Any, BaseException | None]:
        """A result, or why there is none. `whose` is the task, for the error's text."""
        try:
            if self._reader is None:
                return payload.loads(buffers[0], buffers[1:]), None
            return self._reader.value(buffers[0], buffers[1:]), None
        except PayloadError as problem:
            error = PayloadError(f"the result of {whose} is not taken: {problem}")
            error.__cause__ = problem.__cause__
        except BaseException as problem:  # whatever the user's __setstate__ raises
            error = PayloadError(f"the result of {whose} can't be loaded here: {problem!r}")
            error.__cause__ = problem
        return None, error

    def failure(self, message: Failed, buffers: Sequence[Any], *, here: bool) -> BaseException:
        """The exception that a task has raised, or that kept it from beginning.

        `here` says that the node uses this program's environment.
        """
        load = payload.load_error if self._reader is None else self._reader.error
        error = load(buffers[0])
        if not message.missing:
            return error
        advice = lacking.advice(message.missing, here)
        if message.reason == Failure.UNLOADABLE.value:
            told = PayloadError(f"{error}. {advice}")
            told.__cause__ = error.__cause__
            return told
        if type(error) in (ImportError, ModuleNotFoundError):
            error.add_note(advice)
        return error
