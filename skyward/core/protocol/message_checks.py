"""Checks what a message must hold beyond the types of its fields, and its number of buffers.

Only messages from nodes are checked: a node was started by its owner, but may itself belong to anybody. A NaN, an
unknown reason or a list of nonsense would do harm far from here, where its sender is no longer known. Whatever depends
on earlier messages is checked by those who remember them. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from skyward.core.protocol.messages import (
    Ack,
    Began,
    Done,
    Failed,
    Failure,
    Gpus,
    Kept,
    Listening,
    Load,
    Message,
    Missing,
    Output,
    Pong,
    Reached,
    Ready,
    Reply,
    Returned,
    StreamData,
    Welcome,
)

__all__ = ["is_sound"]

_MAX_SLOTS = 1 << 16
_MAX_ADDRESSES = 64
_MAX_GPUS = 1 << 10
_MAX_NAME = 1 << 10  # characters of a GPU's id or name
_REASONS = {reason.value for reason in Failure}
_CARRIED = {Failure.RAISED.value, Failure.UNLOADABLE.value}  # these carry a pickled exception


def _naturals(values: Iterable[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _strings(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


def _done(message: Done, buffers: int) -> bool:
    return (
        buffers > 0
        and message.task > 0
        and 0 <= message.slot <= _MAX_SLOTS
        and 0 <= message.seconds < math.inf
        and (not message.files or _files(message.files, buffers))
    )


def _files(files: dict[Any, Any], buffers: int) -> bool:
    """Whether each file stands in the place of a buffer that is not among those sent."""
    last = buffers - 1 + len(files)
    return all(type(at) is int and 0 <= at < last and type(path) is bytes for at, path in files.items())


def _failed(message: Failed, buffers: int) -> bool:
    return (
        message.task > 0
        and 0 <= message.slot <= _MAX_SLOTS
        and 0 <= message.seconds < math.inf
        and message.reason in _REASONS
        and (buffers > 0 or message.reason not in _CARRIED)
    )


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _load(message: Load) -> bool:
    sizes = message.cores, message.memory_used, message.memory_total, message.disk_free
    return _is_share(message.cpu) and all(size is None or size >= 0 for size in sizes) and _gpus(message.gpus)


def _gpus(found: list[Any]) -> bool:
    return len(found) <= _MAX_GPUS and all(
        type(gpu) is list
        and len(gpu) == 5
        and all(type(text) is str and len(text) <= _MAX_NAME for text in gpu[:2])
        and all(size is None or (type(size) is int and size >= 0) for size in gpu[2:4])
        and _is_share(gpu[4])
        for gpu in found
    )


_CHECKS: dict[type[Any], Callable[[Any, int], bool]] = {
    Welcome: lambda m, _: m.received >= 0 and type(m.facts.get("memory", 0)) is int and m.facts.get("memory", 0) >= 0,
    Pong: lambda m, _: math.isfinite(m.stamp),
    Ack: lambda m, _: m.received >= 0,
    Ready: lambda m, _: m.error is not None or 0 < m.slots <= _MAX_SLOTS,
    Done: _done,
    Failed: _failed,
    Returned: lambda m, _: _naturals(m.tasks),
    Began: lambda m, _: _naturals(m.tasks) and _naturals(m.slots) and len(m.tasks) == len(m.slots),
    Missing: lambda m, _: _naturals(m.tasks),
    Output: lambda m, buffers: m.stream in (1, 2) and buffers == 1,
    StreamData: lambda _, buffers: buffers == 1,
    Kept: lambda m, _: m.size >= 0,
    Listening: lambda m, _: 0 < m.port < 1 << 16 and len(m.addresses) <= _MAX_ADDRESSES and _strings(m.addresses),
    Reached: lambda m, _: _strings(m.peers),
    Gpus: lambda m, _: _gpus(m.found),
    Load: lambda m, _: _load(m),
    Reply: lambda m, buffers: m.request > 0 and buffers == (m.error is None),
}


def is_sound(message: Message, buffers: int) -> bool:
    """Whether a message that arrived with this number of buffers makes sense."""
    check = _CHECKS.get(type(message))
    return check is None or check(message, buffers)
