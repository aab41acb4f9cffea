"""Whether and how the pieces of a large message are compressed.

Compression pays if the data shrink and the line is slow, so both are measured: a few slices of the message are tried,
and `RateMeter` watches how fast the link takes bytes. `pays` decides. Pure except for the clock that `Packer` is given.

zstandard may be missing on a node, which reports that in its greeting. It is imported when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

from skyward.core.errors import ProtocolError

__all__ = ["Packer", "RateMeter", "Sample", "pays", "unpack"]

_LEVEL = 1
_SLICES = 3
_SLICE = 64 * 1024
_MIN_SIZE = 512 * 1024  # bytes of a message, so that the sample is a small part of it
_MIN_RATIO = 1.2  # noise as float64 gives 1.06, and would cost both ends for nothing
_MAX_COST = 0.9  # of the time that sending takes, or of a piece's size; a smaller gain is not worth it
_REST = 50.0  # pause after a sample, in times of what it took: what is sent together is mostly alike
_STRETCH = 0.1  # minimum seconds to measure a rate
_WINDOW = 1 << 20  # maximum bytes that a frame may make its reader keep; ours need no more than a piece


class Sample(NamedTuple):
    """Result of compressing a few slices: size before / size after, and bytes per second."""

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
    """Whether compressing and sending less is faster than sending everything, at `rate` bytes per second.

    Assumes that one happens after the other; any overlap is a bonus, since SSH needs the processor, too. A rate of None
    is unknown; a line that has taken nothing for a while has a rate of 0.
    """
    if rate is None or sample.ratio < _MIN_RATIO:
        return False
    return rate / sample.speed + 1 / sample.ratio < _MAX_COST


class RateMeter:
    """Measures how fast a link takes bytes, over stretches in which more was waiting than it could take.

    It does not use acknowledgements: they arrive when a message is complete, which is too late for the largest ones.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._since: tuple[float, int] | None = None

    def __repr__(self) -> str:
        return f"<RateMeter {'unknown' if self.rate is None else f'{self.rate / 1e6:.1f} MB/s'}>"

    def full(self, written: int, now: float) -> None:
        """Note that the link accepts nothing more for now, after `written` bytes in total."""
        if self._since is None:
            self._since = (now, written)
            return
        seconds = now - self._since[0]
        if seconds >= _STRETCH:
            rate = (written - self._since[1]) / seconds
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
            self._since = (now, written)

    def idle(self) -> None:
        """Note that the link could take more than there was, so the current stretch says nothing about it."""
        self._since = None


class Packer:
    """Compresses pieces of large messages for one link, if that pays.

    Parameters
    ----------
    rate_meter
        Measures the link.
    clock
        Returns seconds, to measure the speed of compression.
    """

    def __init__(self, rate_meter: RateMeter, clock: Callable[[], float]) -> None:
        self._rate_meter = rate_meter
        self._clock = clock
        self._compress = _zstandard().ZstdCompressor(level=_LEVEL).compress
        self._last = Sample(1.0, 1.0)
        self._next_at = -math.inf  # when to take a sample again

    def __repr__(self) -> str:
        return f"<Packer {self._rate_meter!r}>"

    def measure(self, views: Sequence[memoryview]) -> Sample:
        """Compress a few slices, spread over the message."""
        total = sum(map(len, views))
        before = after = 0
        speed = 0.0
        for index in range(_SLICES):
            part = _at(views, total * (2 * index + 1) // (2 * _SLICES))
            began = self._clock()
            after += len(self._compress(part))
            before += len(part)
            # The maximum: interruptions only ever make it slower.
            speed = max(speed, len(part) / max(self._clock() - began, 1e-9))
        return Sample(before / after, speed)

    def _sample(self, views: Sequence[memoryview]) -> Sample:
        """Return a sample of this message, or one taken of another message a moment ago."""
        began = self._clock()
        if began >= self._next_at:
            self._last = self.measure(views)
            ended = self._clock()
            self._next_at = ended + _REST * (ended - began)
        return self._last

    def pack(self, message: Compressible, body: memoryview) -> bytes | None:
        """Compress the next piece of a message; None to send it as it is."""
        if self._rate_meter.rate is None:
            return None
        if message.sample is None:
            is_large = sum(map(len, message.views)) >= _MIN_SIZE
            message.sample = self._sample(message.views) if is_large else Sample(1.0, 1.0)
        if not pays(message.sample, self._rate_meter.rate):
            return None
        packed: bytes = self._compress(body)
        return packed if len(packed) < _MAX_COST * len(body) else None


def _at(views: Sequence[memoryview], at: int) -> memoryview:
    """Return a slice at this offset of the message, moved so that it lies within one buffer."""
    for view in views:
        if at < len(view):
            return view[max(0, min(at, len(view) - _SLICE)) :][:_SLICE]
        at -= len(view)
    raise AssertionError("beyond the end")


def unpack(body: memoryview, limit: int) -> bytes:
    """Decompress a piece; ProtocolError if it is malformed, or larger than `limit` bytes."""
    try:
        zstandard = _zstandard()
    except ImportError as error:
        raise ProtocolError("a compressed piece, but zstandard is not installed here") from error
    try:
        # The size that a frame declares is what gets allocated, so it is checked first.
        size = zstandard.frame_content_size(body)
        if not 0 < size <= limit:
            raise ProtocolError(f"a compressed piece of {size:,} bytes, where at most {limit:,} are expected")
        data: bytes = _decompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"not a compressed piece: {error}") from error
    return data


def _zstandard() -> Any:
    import zstandard  # noqa: PLC0415 - see the module's docstring

    return zstandard


@cache
def _decompressor() -> Any:
    return _zstandard().ZstdDecompressor(max_window_size=_WINDOW)
