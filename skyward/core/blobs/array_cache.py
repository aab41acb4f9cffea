"""Which arrays of a task group were read already, so that tasks with the same array need not read all of it again."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import xxhash

from skyward.core.blobs.snapshots import Snapshot, Snapshots, blob_name, owner_of

__all__ = ["ArrayCache"]

_MAX_HELD = 128 << 20  # bytes of a group's copies that are held while no task needs them, not counting the newest
_SAMPLES, _SAMPLE = 64, 4096  # number and bytes of the samples of an array that would take too long to read in full
_SPEED = 10e9  # bytes read per second, until it has been measured
_PIECE = 8 << 20  # bytes read between two checks whether reading is still worth it
_WORTH = 1 / 20  # share of a task's running time that may be spent on finding out whether an array has changed
_BUSY = 1 / 2  # share of the submitting thread's time that may be spent so while all slots are busy

_Key = tuple[int, int, int]  # see `owner_of`


class _Seen(NamedTuple):
    owner: weakref.ref[Any]
    sample: bytes
    name: bytes


class ArrayCache:
    """The arrays of one task group that were hashed already, so that short tasks with the same array skip the hashing.

    Whether an array has changed since the last task is determined exactly, by hashing it again, unless that would take
    more than a twentieth of a task's running time or would keep the submitting thread too busy to feed all slots. Until
    the first task is done the running time is unknown, and everything is hashed.

    Otherwise an array counts as unchanged while it is the same object at the same place and samples of its content are
    the same: a buffer that is refilled between two tasks is noticed, a change of a few elements is not. (joblib with
    loky compares only the object.)

    Dead arrays are forgotten, since another one may be created in their place.

    Parameters
    ----------
    snapshots
        Where copies are. The newest ones are held as long as both this object and the array live, since the next task
        may need them again; holding all would keep every array of the group in memory twice.
    slots
        Returns how many tasks run at once.
    """

    def __init__(self, snapshots: Snapshots, slots: Callable[[], int] = lambda: 1) -> None:
        self._snapshots = snapshots
        self._slots = slots
        self._ran: tuple[float, int] = 0.0, 0  # seconds in total, and number of tasks
        self._costs: dict[int, float] = {}  # size -> minimum seconds that reading it took
        self._seen: dict[_Key, _Seen] = {}
        self._held: dict[_Key, bytes] = {}  # digests of copies, oldest first

    def __repr__(self) -> str:
        return f"<ArrayCache {len(self._seen)}, {len(self._held)} held>"

    def __del__(self) -> None:
        self._snapshots.drop(self._held.values())

    def ran(self, seconds: float) -> None:
        """Record how many seconds a task with arrays ran. One thread may call this while others submit."""
        total, count = self._ran
        self._ran = total + seconds, count + 1

    def take(self, buffer: memoryview) -> tuple[bytes, Snapshot]:
        """Return digest and copy of a buffer for one task; a known array is read again only if that pays."""
        name = self.find(buffer)
        data = None if name is None else self._snapshots.hold(name)
        known = data is not None and owner_of(buffer)[1] in self._seen
        if name is None:
            name, data = self._snapshots.take(buffer, is_new=True)
        elif data is None:
            name, data = self._snapshots.copy(buffer)
        if not known:
            self._note(buffer, name)
        return name, data

    def find(self, buffer: memoryview) -> bytes | None:
        """Return the digest of a known array, also if it was found to have changed; None if it has to be read."""
        owner, key = owner_of(buffer)
        seen = self._seen.get(key)
        if seen is None or seen.owner() is not owner:
            return None
        name = self._read(buffer)
        if name is None:
            return seen.name if seen.sample == _sample(buffer) else None
        if name != seen.name:
            self._forget(key)
        return name

    def _read(self, buffer: memoryview) -> bytes | None:
        """Hash a buffer; return None as soon as that is no longer worth the time."""
        content, size = xxhash.xxh3_128(), len(buffer)
        began = time.thread_time()
        for start in range(0, size, _PIECE):
            if not self._is_worth_reading(size):
                return None
            content.update(buffer[start : start + _PIECE])
        taken = time.thread_time() - began
        self._costs[size] = min(taken, self._costs.get(size, taken))
        return blob_name(size, content.digest())

    def _is_worth_reading(self, size: int) -> bool:
        seconds, count = self._ran
        if not count:
            return True
        return self._costs.get(size, size / _SPEED) <= seconds / count * min(_WORTH, _BUSY / max(self._slots(), 1))

    def _note(self, buffer: memoryview, name: bytes) -> None:
        """Remember an array's digest and hold its copy; other buffers are not remembered."""
        owner, key = owner_of(buffer)
        if owner is None:
            return
        self._snapshots.hold(name)
        self._forget(key)
        this = weakref.ref(self)
        self._seen[key] = _Seen(weakref.ref(owner, lambda _: _forget(this, key)), _sample(buffer), name)
        self._held[key] = name
        held = list(self._held)  # a copy: arrays that are garbage-collected meanwhile are forgotten
        size = sum(length for *_, length in held)
        for oldest in held[:-1]:
            if size <= _MAX_HELD:
                break
            size -= oldest[2]
            self._let_go(oldest)

    def _forget(self, key: _Key) -> None:
        self._seen.pop(key, None)
        self._let_go(key)

    def _let_go(self, key: _Key) -> None:
        name = self._held.pop(key, None)
        if name is not None:
            self._snapshots.drop([name])


def _forget(arrays: weakref.ref[ArrayCache], key: _Key) -> None:
    if (alive := arrays()) is not None:
        alive._forget(key)  # noqa: SLF001 - a bound method would keep the cache alive


def _sample(buffer: memoryview) -> bytes:
    """Hash samples of a buffer, its beginning and end included."""
    samples = xxhash.xxh3_128()
    step = max(1, (len(buffer) - _SAMPLE) // (_SAMPLES - 1))
    for start in range(0, len(buffer), step):
        samples.update(buffer[start : start + _SAMPLE])
    return samples.digest()
