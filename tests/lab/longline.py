"""The long cable: ``longline.py NEAR FAR DELAY RATE`` joins two TAP devices and holds packets back.

Each Ethernet frame that enters at one end leaves at the other DELAY seconds later; with a RATE
(bytes per second, 0: none) frames also queue up behind each other, and those that would wait
longer than the queue holds are dropped, as a router does. The devices vanish with this process.
It stands alone and uses the standard library only, as it runs without the package.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import os
import select
import struct
import sys
import time

__all__ = ["Lane", "main"]

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME = 65536
_QUEUE = 0.25
"""Seconds of traffic that wait in front of a lane with a rate."""
_BURST = 64
"""Frames taken from one end before the other has its turn."""


class Lane:
    """One direction: decides when each frame leaves; knows neither devices nor the clock."""

    def __init__(self, delay: float, rate: float) -> None:
        self.delay = delay
        self.rate = rate
        self._free_at = 0.0

    def __repr__(self) -> str:
        return f"<Lane delay {self.delay:g} s rate {self.rate:g} B/s>"

    def leaves_at(self, size: int, now: float) -> float | None:
        """When a frame of this size that enters now comes out; None: dropped."""
        if not self.rate:
            return now + self.delay
        starts = max(now, self._free_at)
        if starts - now > _QUEUE:
            return None
        self._free_at = starts + size / self.rate
        return self._free_at + self.delay


def _tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return fd


def _write(fd: int, frame: bytes) -> None:
    try:
        os.write(fd, frame)
    except OSError as error:
        # EIO: the far interface is down, so the frame is lost like on any cut cable.
        if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
            raise


def _take(fd: int) -> list[bytes]:
    frames = []
    for _ in range(_BURST):
        try:
            frames.append(os.read(fd, _FRAME))
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: our own end is down; others: it is gone
                raise
            break
    return frames


def main(near: str, far: str, delay: float, rate: float) -> None:
    """Carry frames until killed or until a device is gone."""
    ends = (_tap(near), _tap(far))
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    lanes = {fd: Lane(delay, rate) for fd in ends}
    heap: list[tuple[float, int, int, bytes]] = []
    order = 0  # keeps frames of one moment in order
    poll = select.epoll()
    for fd in ends:
        poll.register(fd, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        wait = max(0.0, heap[0][0] - time.monotonic()) if heap else -1.0
        for fd, _ in poll.poll(wait):
            for frame in _take(fd):
                leaves = lanes[fd].leaves_at(len(frame), time.monotonic())
                if leaves is not None:
                    order += 1
                    heapq.heappush(heap, (leaves, order, other[fd], frame))
        while heap and heap[0][0] <= time.monotonic():
            _, _, out, frame = heapq.heappop(heap)
            _write(out, frame)


if __name__ == "__main__":
    # When its host is switched off one end is gone, which is how a cable's life ends.
    with contextlib.suppress(OSError):
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
