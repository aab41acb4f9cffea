"""Sends changes to all browsers, once a second or as often as that may cost, and nothing while there is none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from skyward.core.status import PoolStatus
from skyward.dashboard.feed import Feed
from skyward.dashboard.recording import Recording

__all__ = ["Broadcast"]

_SHARE = 0.003  # of a core that messages may take on average, with many nodes by coming less often
_MAX_PAUSE = 5.0  # seconds from one to the next, whatever they cost
_NEWS = 0.3  # how much the last message counts in what the next one is expected to cost
_MAX_WAITING = 10  # messages for one browser; a slower one is sent everything again
_MAX_BROWSERS = 20
_AT_ONCE = 5000  # tasks that are digested at once; waking up for fewer costs more than their events in memory do
_MAX_LOOKS = 16  # from one message to the next


class Broadcast:
    """Sends messages to browsers; belongs to the server's loop.

    Parameters
    ----------
    recording, feed
        The recording of the pool, and the messages about it.
    status
        Returns the pool's state; must not block.
    state
        Returns whether it is starting, running or has ended.
    pause
        Seconds between two messages that cost little.
    cpu
        Returns the CPU seconds of the calling thread.

    Attributes
    ----------
    sent
        Bytes, to all browsers together.
    """

    def __init__(
        self,
        recording: Recording,
        feed: Feed,
        status: Callable[[], PoolStatus],
        state: Callable[[], str],
        pause: float = 1.0,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._recording = recording
        self._feed = feed
        self._status = status
        self._state = state
        self._browsers: set[asyncio.Queue[str | None]] = set()
        self._ended = asyncio.Event()
        self._pause = pause
        self._cpu = cpu
        self._cost = 0.0  # CPU seconds that a message is expected to take
        self.sent = 0

    def __repr__(self) -> str:
        return f"<Broadcast to {len(self._browsers)}>"

    @property
    def is_full(self) -> bool:
        """Whether no further browser may join."""
        return len(self._browsers) >= _MAX_BROWSERS

    @property
    def pause(self) -> float:
        """Seconds until the next message."""
        return max(self._pause, min(self._cost / _SHARE, _MAX_PAUSE))

    async def run(self) -> None:
        """Send changes until `end`."""
        ended = 0  # tasks, from one message to the next
        while not self._ended.is_set():
            pause = self.pause
            looks = min(1 + ended // _AT_ONCE, _MAX_LOOKS)
            ended = 0
            for _ in range(looks):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), pause / looks)
                    break
                ended += self._recording.digest(time.monotonic())
            else:
                self._tick()
        self._tick()
        for browser in self._browsers:
            self._put(browser, None)

    def end(self) -> None:
        """Send what is left, then nothing more."""
        self._ended.set()

    async def messages(self) -> AsyncIterator[str]:
        """Yield all messages for one browser that joins now."""
        browser: asyncio.Queue[str | None] = asyncio.Queue(_MAX_WAITING)
        self._tick(joining=True)  # what the others lack is in the first message of this one
        self._browsers.add(browser)
        try:
            text: str | None = self._whole()
            while text is not None:
                self.sent += len(text)
                yield text
                if browser.full():
                    while not browser.empty():
                        browser.get_nowait()
                    text = self._whole()
                else:
                    text = await browser.get()
        finally:
            self._browsers.discard(browser)

    def _tick(self, *, joining: bool = False) -> None:
        self._recording.digest(time.monotonic())
        if not self._browsers and not joining:
            self._cost = 0.0
            return
        began = self._cpu()
        text = self._feed.changes(self._met(), time.monotonic(), self._state())
        for browser in self._browsers:
            self._put(browser, text)
        if not joining:  # that message may hold all that happened while nobody looked
            self._cost += _NEWS * (self._cpu() - began - self._cost)

    def _whole(self) -> str:
        return self._feed.whole(self._met(), time.monotonic(), self._state())

    def _met(self) -> PoolStatus:
        status = self._status()
        self._recording.meet(status)
        return status

    def _put(self, browser: asyncio.Queue[str | None], text: str | None) -> None:
        if browser.full() and text is None:
            browser.get_nowait()
        if not browser.full():
            browser.put_nowait(text)
