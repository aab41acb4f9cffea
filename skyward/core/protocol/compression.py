"""Whether the pieces of a large message are compressed on their way, and how.

Compressing pays where data shrink and the line is slow, so both are measured: a few slices of the message are tried,
and `RateMeter` watches what the link takes. `pays` decides. Pure but for the clock that `Packer` is given.

zstandard may be missing on a node, which says so in its greeting, and is imported by whoever needs it first.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

from skyward.core.errors import ProtocolError

__all__ = ["Packer", "RateMeter", "Sample", "available", "pays", "unpack"]

_LEVEL = 1
_SLICES = 3
_SLICE = 64 * 1024
_LEAST = 512 * 1024  # bytes of a message, so that the sample is a small part of it
_SHRINKS = 1.2  # noise as float64 gives 1.06 and would cost both ends for nothing
_GAIN = 0.9  # of the time that sending takes, or of a piece's size; with less to win it is left alone
_REST = 50.0  # times what a look took, until the next: what is sent together is mostly alike, and a fast line is fast
_STRETCH = 0.1  # seconds from which a rate can be told
_WINDOW = 1 << 20  # bytes that a frame may make the reader keep; ours need no more than a piece


class Sample(NamedTuple):
    """What compressing a few slices gave: size before / size after, and bytes per second."""

    ratio: float
    speed: float


class Compressible(Protocol):
    """A large message whose pieces may be compressed.

    Attributes
    ----------
    views
        The bytes still to be sent.
    sample
        How well they compress; None until `Packer.pack` has found out.
    """

    views: list[memoryview]
    sample: Sample | None


def pays(sample: Sample, rate: float | None) -> bool:
    """Whether compressing and sending less is faster than sending all, at `rate` bytes per second (None: unknown).

    As if done one after the other; what overlaps is a gain that is not counted on, since SSH needs the processor too.
    A line that has taken nothing for a while has a rate of 0.
    """
    if rate is None or sample.ratio < _SHRINKS:
        return False
    return rate / sample.speed + 1 / sample.ratio < _GAIN


class RateMeter:
    """How fast a link takes bytes, from stretches in which it had more to take than it could.

    Not from acknowledgements: those come when a message is complete, which for the largest is too late.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._since: tuple[float, int] | None = None

    def __repr__(self) -> str:
        return f"<RateMeter {'unknown' if self.rate is None else f'{self.rate / 1e6:.1f} MB/s'}>"

    def full(self, written: int, now: float) -> None:
        """The link takes no more for now, of which it has taken `written` bytes in all."""
        if self._since is None:
            self._since = (now, written)
            return
        seconds = now - self._since[0]
        if seconds >= _STRETCH:
            rate = (written - self._since[1]) / seconds
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
            self._since = (now, written)

    def idle(self) -> None:
        """The link could take more than there was, so the present stretch says nothing of it."""
        self._since = None


class Packer:
    """Compresses pieces of large messages for one link, where it pays.

    Parameters
    ----------
    rate_meter
        What the link takes.
    clock
        Seconds, for the speed of compressing.
    """

    def __init__(self, rate_meter: RateMeter, clock: Callable[[], float]) -> None:
        self._rate_meter = rate_meter
        self._clock = clock
        self._compress = _zstandard().ZstdCompressor(level=_LEVEL).compress
        self._seen = Sample(1.0, 1.0)
        self._look_again = -math.inf

    def __repr__(self) -> str:
        return f"<Packer {self._rate_meter!r}>"

    def look(self, views: Sequence[memoryview]) -> Sample:
        """Try a few slices of a message, spread over it."""
        total = sum(map(len, views))
        before = after = 0
        speed = 0.0
        for index in range(_SLICES):
            part = _at(views, total * (2 * index + 1) // (2 * _SLICES))
            began = self._clock()
            after += len(self._compress(part))
            before += len(part)
            # The best, since what interrupts us only ever makes it slower.
            speed = max(speed, len(part) / max(self._clock() - began, 1e-9))
        return Sample(before / after, speed)

    def _sample(self, views: Sequence[memoryview]) -> Sample:
        """What is to be thought of a message: what was seen in it, or a moment ago in another."""
        began = self._clock()
        if began >= self._look_again:
            self._seen = self.look(views)
            ended = self._clock()
            self._look_again = ended + _REST * (ended - began)
        return self._seen

    def pack(self, message: Compressible, body: memoryview) -> bytes | None:
        """The next piece of a message compressed; None when it goes as it is."""
        if self._rate_meter.rate is None:
            return None
        if message.sample is None:
            much = sum(map(len, message.views)) >= _LEAST
            message.sample = self._sample(message.views) if much else Sample(1.0, 1.0)
        if not pays(message.sample, self._rate_meter.rate):
            return None
        packed: bytes = self._compress(body)
        return packed if len(packed) < _GAIN * len(body) else None


def _at(views: Sequence[memoryview], at: int) -> memoryview:
    """A slice that begins at a byte of the message, or so that it is within one buffer."""
    for view in views:
        if at < len(view):
            return view[max(0, min(at, len(view) - _SLICE)) :][:_SLICE]
        at -= len(view)
    raise AssertionError("beyond the end")


def unpack(body: memoryview, most: int) -> bytes:
    """Decompress a piece; ProtocolError if it is none, or would be more than `most` bytes."""
    try:
        zstandard = _zstandard()
    except ImportError as error:
        raise ProtocolError("a compressed piece, but there is no zstandard here") from error
    try:
        # What a frame says of its size is what gets allocated, so it is looked at first.
        size = zstandard.frame_content_size(body)
        if not 0 < size <= most:
            raise ProtocolError(f"a compressed piece of {size:,} bytes where at most {most:,} are wanted")
        data: bytes = _decompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"not a compressed piece: {error}") from error
    return data


@cache
def available() -> bool:
    """Whether this process can compress and decompress."""
    return importlib.util.find_spec("zstandard") is not None


def _zstandard() -> Any:
    import zstandard  # noqa: PLC0415 - see the module's docstring

    return zstandard


@cache
def _decompressor() -> Any:
    return _zstandard().ZstdDecompressor(max_window_size=_WINDOW)
