"""What is sent to a slot: a batch of joblib's calls, and the initializer that must run there first."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

from joblib.parallel import BatchedCalls

from skyward.core.function import run_pending
from skyward.core.labels import label
from skyward.core.payload import pickling
from skyward.core.payload.memory_maps import Named
from skyward.core.tasks.several_calls import Call, SeveralCalls, latest
from skyward.joblib_ext import callbacks, joblib_private, stand_ins
from skyward.joblib_ext.slot_backend import enter_slot, nested

__all__ = ["Batch", "Initializer", "plain_parts"]

_lock = threading.RLock()  # guards _ran, and makes other threads wait until an initializer has ended
_ran: set[bytes] = set()


class Initializer:
    """A function that each slot process runs once before its first batch, as loky's workers do.

    Parameters
    ----------
    key
        Digest of function and arguments.
    head, buffers
        Function and arguments, pickled.
    proxies
        The Managers' proxies in them. They stay in this process.
    """

    def __init__(self, key: bytes, head: bytes, buffers: Sequence[Any], proxies: Sequence[Any] = ()) -> None:
        self.key = key
        self.proxies = proxies
        self._head = head
        self._buffers = buffers

    def __repr__(self) -> str:
        return f"<Initializer {self.key.hex()[:8]}>"

    def __reduce__(self) -> Any:
        # As PickleBuffers, large arguments are sent to a node once and not with each batch.
        return Initializer, (self.key, self._head, [pickle.PickleBuffer(buffer) for buffer in self._buffers])

    @classmethod
    def pack(cls, function: Callable[..., object], args: Sequence[Any], named: Named = "none") -> Initializer:
        """Pickle an initializer once for all batches.

        Parameters
        ----------
        function, args
            What to call.
        named
            See `pickling.dumps`.

        Raises
        ------
        PayloadError
            The function or an argument can't be pickled.
        """
        proxies: list[Any] = []
        head, buffers = pickling.dumps(
            (function, tuple(args)), "the initializer", large=None, named=named, on_proxy=proxies.append
        )
        digest = hashlib.blake2b(head, digest_size=16)
        for buffer in buffers:
            digest.update(buffer)
        return cls(digest.digest(), head, buffers, proxies)

    def once(self) -> None:
        """Run it unless this process has run it before."""
        with _lock:
            if self.key in _ran:
                return
            function, args = pickling.loads(self._head, self._buffers)
            try:
                function(*args)
            except BaseException as error:
                error.add_note("(raised by the initializer that was given to joblib)")
                raise
            _ran.add(self.key)


class Batch(SeveralCalls):
    """A batch of joblib's calls, as a task. Most of the time between two small tasks is spent here.

    Parameters
    ----------
    calls
        joblib's ``BatchedCalls``, or only its items if `level` is given, which are faster to pickle.
    level
        Nesting level of calls inside tasks; see `nested`.
    initializer
        What must run in the slot first.
    function
        The pickle of the function that all calls share; None if they call several, or if the function may change.
    number
        Distinguishes the driver's calls of ``Parallel``.
    """

    __slots__ = ("_ran", "calls", "function", "initializer", "level", "number")

    def __init__(
        self,
        calls: Any,
        level: int | None = None,
        initializer: Initializer | None = None,
        function: bytes | None = None,
        number: int = 0,
    ) -> None:
        self.calls = calls
        self.number = number
        self.level = level
        self.initializer = initializer
        self.function = function

    def __reduce__(self) -> Any:
        if self.function is None:
            return Batch, (self.calls, self.level, self.initializer, None, self.number)
        calls = [(args, kwargs) for _, args, kwargs in self.calls]
        return _of_one_function, (self.function, calls, self.level, self.initializer, self.number)

    def __repr__(self) -> str:
        return f"<Batch of {self.label}>"

    @property
    def label(self) -> str:
        """Name in messages: the first function."""
        items = self.calls if self.level is not None else getattr(self.calls, "items", None)
        return label(items[0][0]) if items else type(self.calls).__qualname__

    @property
    def context(self) -> bytes:
        """See `SeveralCalls`."""
        return b"" if self.initializer is None else self.initializer.key

    @property
    def _items(self) -> Sequence[Call]:
        return self.calls if self.level is not None else self.calls.items  # type: ignore[no-any-return]

    def each(self) -> Sequence[Call]:
        """See `Traceable`."""
        return self._items

    def parts(self) -> Sequence[Call]:
        """See `SeveralCalls`."""
        return [stand_ins.what_counts(call) for call in self._items]

    def only(self, wanted: Sequence[int]) -> Batch:
        """See `SeveralCalls`."""
        items = [self._items[number] for number in wanted]
        calls: Any = items
        if self.level is None:
            calls = joblib_private.with_items(self.calls, items)
        return Batch(calls, self.level, self.initializer, self.function, self.number)

    def __call__(self) -> Any:
        """Run the calls, in a slot."""
        enter_slot()
        callbacks.begin_call(self.number)
        if self.initializer is not None:
            self.initializer.once()
        calls = self.calls if self.level is None else BatchedCalls(self.calls, (nested(self.level), None))
        if type(calls) is not BatchedCalls:  # a third party's class, which may keep its calls anywhere
            return [run_pending(result) for result in calls()]
        items = calls.items
        calls.items = progress = iter(items)
        self._ran = items, progress
        results = iter(calls())
        self._ran = items, results
        return [run_pending(result) for result in results]

    def reached(self) -> tuple[int, Call] | None:
        """See `Traceable`."""
        return latest(*getattr(self, "_ran", ((), None)))


def _of_one_function(function: bytes, calls: list[tuple[Any, Any]], level: int, initializer: Any, number: int) -> Batch:
    """Rebuild a batch; called when it is unpickled."""
    call = pickle.loads(function)
    return Batch([(call, args, kwargs) for args, kwargs in calls], level, initializer, None, number)


def plain_parts(batch: Batch) -> list[Any] | None:
    """Return the parts of a batch that need pickling, for `pickling.PLAIN`; None if they need cloudpickle."""
    if batch.function is None or batch.initializer is not None:
        return None
    return [part for _, args, kwargs in batch.calls for part in (args, kwargs)]
