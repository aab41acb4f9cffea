"""Tasks whose results come back pickled one by one, so that each call's result can be stored by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from skyward.core.function import run_pending
from skyward.core.labels import label
from skyward.core.payload import pickling
from skyward.core.tasks.several_calls import Call, SeveralCalls, Traceable

__all__ = ["OneCall", "Separately"]


class OneCall(SeveralCalls):
    """A single call, as a list of one."""

    __slots__ = ("call",)

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return OneCall, self.call

    def __repr__(self) -> str:
        return f"<OneCall {self.label}>"

    @property
    def label(self) -> str:
        """Name in messages."""
        return label(self.call[0])

    def each(self) -> Sequence[Call]:
        """See `Traceable`."""
        function, args, kwargs = self.call
        return [(function, args, kwargs)]

    def parts(self) -> Sequence[Call]:
        """See `SeveralCalls`."""
        return self.each()

    def only(self, wanted: Sequence[int]) -> OneCall:
        """See `SeveralCalls`."""
        assert list(wanted) == [0]
        return self

    def __call__(self) -> list[Any]:
        """Run it, in a slot."""
        function, args, kwargs = self.call
        return [run_pending(function(*args, **kwargs))]

    def reached(self) -> tuple[int, Call] | None:
        """See `Traceable`."""
        return 0, self.each()[0]


class Separately(Traceable):
    """Runs a task in a slot, and pickles each of the results that it returns.

    Parameters
    ----------
    task
        A `SeveralCalls` that can be called.
    """

    __slots__ = ("task",)

    def __init__(self, task: Callable[[], list[Any]]) -> None:
        self.task: Any = task

    def __reduce__(self) -> Any:
        return Separately, (self.task,)

    def __repr__(self) -> str:
        return f"<Separately {self.label}>"

    @property
    def label(self) -> str:
        """Name in messages."""
        return label(self.task)

    def __call__(self) -> list[tuple[bytes, list[pickle.PickleBuffer]]]:
        """Run the task; return the pickle of each result, and its out-of-band buffers."""
        apart = []
        for result in self.task():
            # As data, and not as the name of a file, which may have changed when the result is taken again.
            head, buffers = pickling.dumps(result, "result", large=None, named="data")
            apart.append((head, [pickle.PickleBuffer(buffer) for buffer in buffers]))
        return apart

    def each(self) -> Sequence[Call]:
        """See `Traceable`."""
        return self.task.each() if isinstance(self.task, Traceable) else []

    def reached(self) -> tuple[int, Call] | None:
        """See `Traceable`."""
        return self.task.reached() if isinstance(self.task, Traceable) else None


pickling.PLAIN[OneCall] = lambda one: one.call
pickling.PLAIN[Separately] = lambda apart: [apart.task]
