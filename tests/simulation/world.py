"""Virtual time, and processes that run one at a time in an order drawn from a seed.

A process here is an event loop of asyncio's own kind, without a thread: `World` decides whose turn it is and how late
it notices that a descriptor is ready. Everything that happens is a turn of a process or an event of the world (bytes
that arrive, a task that ends, a fault), so a seed replays to the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import math
import random
import select
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

__all__ = ["MEMORY", "Process", "Stuck", "World"]

_SHM = Path("/dev/shm")
MEMORY = _SHM if _SHM.is_dir() else None
"""Where files cost least."""

_LATE = 0.15  # of the times that a descriptor is ready, it is noticed only later
_MAX_DELAY = 0.005  # seconds
_CLEANUPS = 5  # nested ones of a coroutine that is closed: each may wait once
_STUMBLING = 0.006  # of the times that somebody reads the clock, in a world where the processor is sometimes away
_ROUNDING = 1e-9  # seconds, of sums with a clock's offset
_MAX_TURNS = 200_000  # until something that is waited for


class Stuck(AssertionError):
    """Nothing will ever happen any more, or it takes too long."""


class _NoSelector:
    """What `base_events` asks of a selector: nothing is ever awaited, as the world knows what is ready."""

    def select(self, _: float | None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _disowned(task: asyncio.Task[Any]) -> Any:
    """The coroutine of a task that is given up."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task.get_coro()


class _Handle(events.Handle):
    """One of asyncio's, without a question each time whether somebody debugs it: a run makes thousands of them."""

    __slots__ = ()
    _repr = _source_traceback = None

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], loop: Process, context: Any) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False


class _Timer(_Handle, events.TimerHandle):
    """The same for what falls due at a time."""

    __slots__ = ()

    def cancel(self) -> None:
        events.Handle.cancel(self)


class Process(base_events.BaseEventLoop):
    """The event loop of one simulated process.

    Parameters
    ----------
    world
        Whose time it keeps.
    name
        For the story of a run.
    offset
        What its clock shows beyond the world's time.
    """

    def __init__(self, world: World, name: str, offset: float) -> None:
        super().__init__()
        self._selector = _NoSelector()
        self._clock_resolution = 1e-9
        self.world = world
        self.name = name
        self.offset = offset
        self.lag = 0.0  # most seconds that it is busy after a turn
        self.frozen_until = 0.0
        self.alive = True
        self._left: set[asyncio.Task[Any]] = set()  # that it had when it was killed
        self.timers: list[tuple[float, int, _Timer]] = []
        """What is due when by its clock: tuples, since a heap compares them fastest."""
        self.readers: dict[int, events.Handle] = {}
        self.writers: dict[int, events.Handle] = {}
        self.set_exception_handler(self._unexpected)

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    def time(self) -> float:
        """The time, which goes on while a process works: two readings are never the same."""
        world = self.world
        world.now += world.slowness
        if world.stumbling and world.random.random() < world.stumbling:
            world.stumble()
        return world.now + self.offset

    def _unexpected(self, _: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.alive:  # the dead have tasks that never end
            self.world.broken.append(f"{self.name}: {context['message']}: {error!r}")

    def _process_events(self, _: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> events.Handle:
        if self._closed:
            self._check_closed()
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        if self._closed:
            self._check_closed()
        timer = _Timer(callback, args, self, context)
        timer._when = when
        heapq.heappush(self.timers, (when, next(self.world.numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> events.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, _: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """A call that takes a while; nothing else of the process waits for it."""
        future = self.create_future()

        def carry_out() -> None:
            if not self.alive or future.done():
                return
            try:
                result = function(*args)
            except Exception as error:
                self.call_soon(_settle, future, None, error)
            else:
                self.call_soon(_settle, future, result, None)

        self.world.after(self.world.random.uniform(0.0, 0.3), carry_out)
        return future

    # --- descriptors ---

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        self._forget(self.readers, fd)
        self.readers[fd if isinstance(fd, int) else fd.fileno()] = _Handle(callback, args, self, None)
        self.world.watch(self, fd)

    def remove_reader(self, fd: Any) -> bool:
        return self._forget(self.readers, fd)

    def add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        self._forget(self.writers, fd)
        self.writers[fd if isinstance(fd, int) else fd.fileno()] = _Handle(callback, args, self, None)
        self.world.watch(self, fd)

    def remove_writer(self, fd: Any) -> bool:
        return self._forget(self.writers, fd)

    def _forget(self, handles: dict[int, events.Handle], fd: Any) -> bool:
        number = fd if isinstance(fd, int) else fd.fileno()
        handle = handles.pop(number, None)
        if handle is None:
            return False
        handle.cancel()  # though it is due, as asyncio's own loops have it
        self.world.watch(self, number)
        return True

    # --- turns ---

    def next_timer(self) -> float:
        """When it has something to do by itself: infinity for never."""
        if self._ready:
            return self.frozen_until
        timers = self.timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        return max(self.frozen_until, timers[0][0] - self.offset) if timers else math.inf

    def turn(self) -> None:
        """One round of the loop: what `BaseEventLoop._run_once` does, where no descriptor has to be asked."""
        ready, timers = self._ready, self.timers
        events._set_running_loop(self)
        try:
            due = self.time() + self._clock_resolution
            while timers and (timers[0][0] < due or timers[0][2]._cancelled):
                ready.append(heapq.heappop(timers)[2])
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    try:  # as `Handle._run` does, without another call
                        handle._context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self._unexpected(self, {"message": f"exception in {handle}", "exception": error})
        finally:
            events._set_running_loop(None)
        if self.lag:
            self.freeze(self.lag * self.world.random.random())

    def freeze(self, seconds: float) -> None:
        """Do nothing for a while, though time goes on."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep as a machine does: its own clock stands still."""
        self.freeze(max(0.0, self.frozen_until - self.world.now) + seconds)
        self.offset -= seconds

    def die(self) -> None:
        """End as by SIGKILL: nothing is said, nothing is cleaned up; its descriptors are the caller's to close."""
        self.alive = False
        self._left = asyncio.all_tasks(self)
        self.readers.clear()
        self.writers.clear()
        for handle in self._ready:  # the turn that it dies in may still be going through them
            handle.cancel()
        self.timers.clear()

    def abandon(self) -> None:
        """Drop what never had another turn, since this was killed before: nothing of it runs any more."""
        events._set_running_loop(self)  # a coroutine that is closed cleans up, and may make tasks for that: here, too
        try:
            known: set[asyncio.Task[Any]] = set()
            while tasks := (self._left | asyncio.all_tasks(self)) - known:
                known |= tasks
                for coroutine in map(_disowned, tasks):
                    for _ in range(_CLEANUPS):
                        with contextlib.suppress(RuntimeError):  # it waits for what cleans up
                            coroutine.close()
        finally:
            events._set_running_loop(None)

    def close(self) -> None:
        super().close()
        self.timers.clear()


class World:
    """Time, chance, and who runs next.

    Parameters
    ----------
    seed
        Everything that is left open is drawn from it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = self.began = 1000.0
        self.slowness = self.random.choice((1e-7, 1e-5, 3e-4))  # seconds that pass between two readings
        self.stumbling = self.random.choice((0.0, 0.0, 0.0, 0.0, _STUMBLING))
        self.on_stumble: Callable[[], object] = lambda: None
        """Called when time goes on by much between two readings of a clock."""
        self.away = 0.0
        """Seconds that the processor was away for at most: so late is whatever is due meanwhile."""
        self.turns = 0
        self.broken: list[str] = []  # what must not be, in the order in which it was found
        self.story: list[tuple[float, str]] = []
        self.processes: list[Process] = []
        self.dead: list[Process] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self.numbers = itertools.count()
        """Tell apart what is due at the same time, in the order in which it was asked for."""
        self._poll = select.epoll()
        self._watched: dict[int, Process] = {}
        self._places: dict[int, int] = {}  # in which order the descriptors were registered
        self._is_ready: list[tuple[int, int]] = []  # descriptors, as last seen
        self._is_known = False  # nobody has done anything since then
        self._noticed: dict[int, float] = {}  # ready descriptor -> when its process sees that

    def __repr__(self) -> str:
        return f"<World of seed {self.seed}, {self.turns} turns, at {self.now:.3f}>"

    def process(self, name: str, offset: float = 0.0) -> Process:
        """A new process, whose clock may show something else than the world's."""
        process = Process(self, name, offset)
        self.processes.append(process)
        return process

    def tell(self, text: str) -> None:
        """Add to the story."""
        self.story.append((self.now, text))

    def awake(self, process: Process, action: Callable[[], object]) -> Callable[[], None]:
        """What does something in a process, once that can do anything."""

        def act() -> None:
            if process.frozen_until > self.now:
                self.at(process.frozen_until, act)
            else:
                action()

        return act

    def stumble(self) -> None:
        """Let nobody do anything for a moment: the processor is away, in the middle of whatever is done."""
        seconds = self.random.choice((0.1, 3.0, 3.0))
        self.tell(f"the processor is away for {seconds:g} s")
        self.now += seconds
        self.away = max(self.away, seconds)
        self.on_stumble()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something later."""
        self.at(self.now + seconds, action)

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Do something at a time; what is due at the same time is done in the order in which it was asked for."""
        heapq.heappush(self._events, (time, next(self.numbers), action))

    def run_task(self, process: Process, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in a process; it must not fail."""
        task = process.create_task(work)

        def check(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.broken.append(f"{process.name}: {error!r}")

        task.add_done_callback(check)
        return task

    def watch(self, process: Process, fd: Any) -> None:
        """A process waits, or waits no more, for a descriptor."""
        number = fd if isinstance(fd, int) else fd.fileno()
        wanted = (select.EPOLLIN if number in process.readers else 0) | (
            select.EPOLLOUT if number in process.writers else 0
        )
        if not wanted:
            self._forget(number)
        elif number in self._watched:
            self._watched[number] = process
            self._poll.modify(number, wanted)
        else:
            self._watched[number] = process
            self._places[number] = next(self.numbers)
            self._poll.register(number, wanted)

    def _forget(self, number: int) -> None:
        if self._watched.pop(number, None) is not None:
            del self._places[number]
            self._poll.unregister(number)
            self._noticed.pop(number, None)

    def unwatch(self, process: Process) -> None:
        """A process has died."""
        self.processes.remove(process)
        self.dead.append(process)
        for number in [number for number, owner in self._watched.items() if owner is process]:
            self._forget(number)

    def run(self, until: Callable[[], bool], limit: float, what: str) -> None:
        """Go on until something holds, which `what` puts in words, or until something is found broken.

        Raises
        ------
        Stuck
            It does not hold after `limit` seconds of virtual time, or so many events.
        """
        end = self.now + limit
        last = self.turns + _MAX_TURNS
        step, broken = self.step, self.broken
        self._is_known = False
        while not until() and not broken:
            if not step() or self.now > end:
                raise Stuck(f"not within {limit:g} seconds of virtual time: {what}")
            if self.turns > last:
                raise Stuck(f"not within {_MAX_TURNS:,} events: {what}")

    def close(self) -> None:
        """End all processes, in order."""
        for process in (*self.processes, *self.dead):
            process.frozen_until = 0.0
            tasks = [task for task in asyncio.all_tasks(process) if not task.done()]
            for task in tasks:
                task.cancel()
            for _ in range(20):
                if process._ready and not process.is_closed():
                    process.turn()
            process.abandon()
            process.close()
        self._poll.close()

    def step(self) -> bool:
        """One thing that can happen, now or when time has passed; False if nothing will ever happen."""
        while not (due := self._due()):
            if not self._pass_time():
                return False
        self._is_known = False
        chosen = due[int(self.random.random() * len(due))] if len(due) > 1 else due[0]
        if chosen is None:
            heapq.heappop(self._events)[2]()
        else:
            chosen.turn()
        return True

    def _due(self) -> list[Any]:
        """Who has something to do now: processes, and None for the world itself."""
        self.turns += 1
        if not self._is_known or self._is_ready:
            self._notice()
        now = self.now + _ROUNDING  # what follows is asked of every process at every step
        due: list[Any] = [
            process
            for process in self.processes
            if (process._ready or ((timers := process.timers) and timers[0][0] <= now + process.offset))
            and process.frozen_until <= now
            and process.alive
        ]
        if self._events and self._events[0][0] <= self.now:
            due.append(None)
        return due

    def _notice(self) -> None:
        """Let processes see which descriptors are ready, sooner or later."""
        if not self._is_known:
            self._is_known, self._is_ready = True, self._poll.poll(0)
            if len(self._is_ready) > 1:  # the kernel's order may depend on more than the seed
                self._is_ready.sort(key=self._place)
        for number, what in self._is_ready:
            process = self._watched[number]
            seen = self._noticed.get(number)
            if seen is None:
                late = self.random.random()
                seen = self.now if late >= _LATE else self.now + late / _LATE * _MAX_DELAY
                self._noticed[number] = seen
            if seen > self.now or process.frozen_until > self.now:
                continue
            del self._noticed[number]
            # Once for each turn: what is still ready afterwards is found again.
            if what & ~select.EPOLLOUT and (reader := process.readers.get(number)) and reader not in process._ready:
                process._ready.append(reader)
            if what & ~select.EPOLLIN and (writer := process.writers.get(number)) and writer not in process._ready:
                process._ready.append(writer)

    def _place(self, ready: tuple[int, int]) -> int:
        return self._places[ready[0]]

    def _pass_time(self) -> bool:
        now, later = self.now, math.inf
        for process in self.processes:
            if process._ready or ((timers := process.timers) and timers[0][2]._cancelled):
                time = process.next_timer()
            elif not timers:
                continue
            elif (time := timers[0][0] - process.offset) < process.frozen_until:
                time = process.frozen_until
            if now < time < later:
                later = time
        for time in self._noticed.values():
            if now < time < later:
                later = time
        if self._events and now < (time := self._events[0][0]) < later:
            later = time
        if later == math.inf:
            return False
        self.now = later
        return True
