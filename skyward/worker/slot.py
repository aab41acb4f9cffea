"""A slot: the process in which tasks are unpickled and run.

It is forked from the fork server, which has made everything that slots have in common, since whatever a slot makes by
itself takes memory in each of them. It talks to the agent over a socket of its own. An isolated slot runs one task at a
time in its main thread; the shared slot runs each task in a thread. Whatever a task does to this process (closes
standard output, forks, exits, recurses endlessly), it is answered, or the process dies and the agent answers.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import importlib.util
import io
import mmap
import os
import queue
import socket
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter
from pathlib import Path
from typing import Any, TextIO

from skyward.core.errors import PayloadError
from skyward.core.function import failed_call, run_pending
from skyward.core.payload import driver_classes, exceptions, memory_maps, pickling, shared_file, surroundings
from skyward.core.payload.short_text import call_text
from skyward.core.protocol.messages import Done, Failed, Failure, Inquire, Missing, Ready, Run
from skyward.core.protocol.wire import Buffer, Filled, Role, Wire
from skyward.core.system import open_files
from skyward.core.whoami import Seats
from skyward.worker import code_folders, no_terminal, shared_segments, thread_limits
from skyward.worker.forkserver.imports import Imports
from skyward.worker.leaks import Growth
from skyward.worker.process import heed_interrupts
from skyward.worker.result_files import ResultFiles
from skyward.worker.tickets import Claims
from skyward.worker.wire_socket import unsent

__all__ = ["Settings", "Slot", "live", "prepare_modules"]

_READ = 256 * 1024  # bytes at a time
_HIGH = 100  # the slot's own file descriptors start here, out of the way of what tasks open and close
_OURS = 8  # number of descriptors that are needed there
_MAPS_SHARE = 10  # one in ten descriptors may be used for arrays; read-only ones take two, and stay for the next task


@dataclass(frozen=True)
class Settings:
    """The settings that all slots of a node share.

    Attributes
    ----------
    node
        The node's name, for messages.
    around
        ``module:function`` context managers around the life of a slot.
    threads
        Default limit of BLAS/OpenMP threads.
    result_files
        Folder in which large results are left to an owner on this machine; None to send them.
    data
        Whether the owner reads results as data.
    gpus
        For each slot, from 1, the environment variables by which it sees its own GPUs; empty if all see all.
    code
        Folder with a folder for each version of the user's code; empty if nodes use the driver's own files.
    """

    node: str
    around: list[str]
    threads: int
    result_files: str | None = None
    data: bool = False
    gpus: Sequence[Mapping[str, str | None]] = ()
    code: str = ""

    @property
    def named(self) -> memory_maps.Named:
        """Which memory maps in results go by the name of their file."""
        return "data" if self.data else "given"

    @property
    def grace(self) -> float:
        """Seconds that idle slots get to end by themselves."""
        return 2.0 if self.around else 0.5


class Slot:
    """Runs tasks and answers each of them once. Made in the fork server; each fork of it becomes a slot.

    Parameters
    ----------
    settings
        What the node's slots have in common.
    import_reports
        Descriptor of the socket on which imports are reported to the fork server.
    """

    sock: socket.socket
    """Blocking, to the agent."""
    seat = 0
    """Its number for tasks, from 1; 0 if threads share it."""
    claims: Claims
    """Which of the tasks that were handed to an isolated slot it still has."""

    def __init__(self, settings: Settings, import_reports: int) -> None:
        self.settings = settings
        if settings.data:
            driver_classes.install()
        self.streams = StdStreams()
        self.limit = thread_limits.Limit(settings.threads)
        surroundings.FOLLOWERS.append(self.limit.follow)
        self.result_files = ResultFiles(settings.result_files) if settings.result_files is not None else None
        self.wire = Wire.opened(Role.AGENT)
        self.growth = Growth()
        self.imports = Imports(import_reports)
        self.pid = 0
        self._code = 0  # the version that this process has
        self._sending = threading.Lock()  # guards the wire's sending half and the order of writes
        self._tasks: queue.SimpleQueue[tuple[Run, list[Filled]]] = queue.SimpleQueue()
        self._held: set[int] = set()  # unanswered tasks of threads
        self._seats = Seats()  # of threads
        self._idle = 0  # threads that wait for a task; only a hint, as an additional thread does no harm

    def __repr__(self) -> str:
        return f"<Slot {self.pid} on {self.settings.node}>"

    def take_gpus(self, seat: int) -> None:
        """See only the GPUs of the slot of this number from now on; before anything is imported that may ask for them.

        An heir could not import ahead what slots do, as modules may look at these variables: imports are not reported.
        """
        for name, value in self.settings.gpus[seat - 1].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.imports.stop()

    def work(self, shared: bool) -> None:
        """Run tasks until the agent closes the socket, or tasks have left too much memory behind."""
        buffer = mmap.mmap(-1, _READ, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # takes memory as it is used
        view = memoryview(buffer)
        while count := self._receive(buffer):
            messages = self.wire.receive_data(view[:count])
            while messages:
                received = messages.pop(0)
                message = received.message
                if isinstance(message, Inquire):  # by now an isolated slot has answered all its tasks
                    self._send(Missing([task for task in message.tasks if task not in self._held]))
                elif not isinstance(message, Run):
                    continue
                elif shared:
                    self._enter_code(message.code)
                    self._to_thread(message, received.buffers)
                elif self.claims.claim(message.task):
                    self._enter_code(message.code)
                    self.answer(message, received.buffers, self.seat)
                    self.imports.report()
                    if self.growth.exceeded() and self.claims.drawn is None:
                        return  # a new slot gets the tasks that have not begun
                del received  # it holds the task's arguments, and the next message may come much later

    def _enter_code(self, version: int) -> None:
        """Take the version of a task, unless it is an earlier one, which only lacks modules; the agent sees to that."""
        if version > self._code:
            self._code = version
            if self.settings.code:
                code_folders.enter(f"{self.settings.code}/{version}")
            elif version > 1:
                # The files are edited: Python takes cached bytecode for that of a source of the same size and second.
                sys.dont_write_bytecode = True

    def _receive(self, buffer: mmap.mmap) -> int:
        while True:
            try:
                return self.sock.recv_into(buffer)
            except ConnectionResetError:
                return 0
            except KeyboardInterrupt:  # meant for a task, but none runs
                continue

    def _to_thread(self, run: Run, buffers: list[Filled]) -> None:
        self._held.add(run.task)
        self._tasks.put((run, buffers))
        if self._idle:
            self._idle -= 1
        else:
            threading.Thread(target=self._thread, name=f"skyward-task-{run.task}", daemon=True).start()

    def _thread(self) -> None:
        while True:
            run, buffers = self._tasks.get()
            try:
                with self._seats.taken() as seat:
                    self.answer(run, buffers, seat)
            except BaseException:  # no answer could be sent; the agent answers when the process has died
                sys.excepthook(*sys.exc_info())
                os._exit(70)
            self._held.discard(run.task)
            del run, buffers  # free the arguments before the next task arrives
            self.imports.report()
            self.growth.exceeded()  # only collects: other threads' tasks are here
            self._idle += 1

    # --- one task ---

    def answer(self, run: Run, buffers: list[Filled], seat: int = 0) -> None:
        """Run a task and send its result or error.

        Parameters
        ----------
        run, buffers
            The task.
        seat
            The slot's number for tasks.
        """
        if self.limit.now != (run.threads or self.limit.default):
            self.limit.set(run.threads)
        try:
            call = self._load(run, buffers)
        except BaseException as error:
            self._fail(run.task, 0.0, Failure.UNLOADABLE, unloadable(error, self.settings.node), seat)
            return
        buffers.clear()
        began = time.perf_counter()
        function, args, kwargs = call
        del call
        try:
            result = run_pending(function(*args, **kwargs))
        except BaseException as error:
            seconds = time.perf_counter() - began
            if os.getpid() != self.pid:
                end_of_fork(error)
            # Drop this frame. Not by assignment, which a frozen dataclass refuses.
            error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            memory_maps.explain(error)
            self._fail(run.task, seconds, Failure.RAISED, error, seat, (function, args, kwargs))
            return
        seconds = time.perf_counter() - began
        if os.getpid() != self.pid:
            end_of_fork(None)
        function = args = kwargs = None
        try:
            head, views = pickling.dumps(result, "result", large=None, named=self.settings.named)
        except BaseException as error:  # a user's __reduce__ may raise anything
            self._fail(run.task, seconds, Failure.RAISED, error, seat)
            return
        self.streams.flush()
        files, rest = (
            self.result_files.put(views, pickling.LARGE) if views and self.result_files is not None else ({}, views)
        )
        self._send(Done(run.task, seconds, files, seat), [head, *rest])

    def _load(self, run: Run, buffers: list[Filled]) -> tuple[Any, Any, Any]:
        memory_maps.begin_task(files=bool(run.blobs))
        if run.authkey:
            sys.modules["multiprocessing.process"].current_process().authkey = run.authkey
        if not run.blobs:
            function, args, kwargs = pickling.loads(buffers[0], buffers[1:])
            return function, args, kwargs
        rest = iter(buffers[1:])
        paths = run.blobs  # the agent has replaced digests by paths
        max_open = open_files.limit() // _MAPS_SHARE
        merged = [
            map_file(os.fsdecode(paths[index]), index < max_open) if index in paths else next(rest)
            for index in range(len(buffers) - 1 + len(paths))
        ]
        function, args, kwargs = pickling.loads(buffers[0], merged)
        return function, args, kwargs

    def _fail(
        self,
        task: int,
        seconds: float,
        reason: Failure,
        error: BaseException,
        seat: int,
        call: tuple[Any, Any, Any] | None = None,
    ) -> None:
        with contextlib.suppress(Exception):  # a task may have left stdout in any state
            self.streams.flush()
        failed = Failed(task, seconds, reason.value, type(error).__name__, missing(error), seat)
        self._send(failed, exceptions.dump(error, item_of(call), as_data=self.settings.data))

    def _send(self, message: Done | Failed | Missing | Ready, buffers: Sequence[Buffer] = ()) -> None:
        with self._sending:
            self.wire.send(message, buffers)
            while parts := self.wire.data_to_send():
                if len(parts) == 1:
                    self.sock.sendall(parts[0])
                    continue
                while parts:
                    parts = unsent(parts, self.sock.sendmsg(parts[:512]))

    def ready(self, error: str | None = None) -> None:
        """Report that tasks can begin, or why not."""
        self._send(Ready(0 if error else 1, error))


def map_file(path: str, may_open: bool) -> Any:
    """Map a blob as a buffer: nothing is copied, and what a task writes to it stays in this process.

    If it `may_open` the file, arrays in it are `numpy.memmap`s, which nested joblib processes open by name.
    """
    if may_open:
        with contextlib.suppress(ImportError):  # a node may lack it
            import numpy  # noqa: PLC0415 - few calls need it

            return numpy.memmap(path, dtype=numpy.uint8, mode="c")
    with Path(path).open("rb", buffering=0) as file:
        return shared_file.map_file(file.fileno(), os.fstat(file.fileno()).st_size)


def unloadable(error: BaseException, node: str) -> BaseException:
    """Return the error to report for a call that can't be unpickled here."""
    text = f"can't load the call on node {node}: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        text = f"No module named {error.name!r} on node {node}"  # the owner adds what to do
    elif isinstance(error, (AttributeError, ImportError)):
        if "on <module '__main__'" in str(error):
            text += "; nodes do not run your program: define it in a module beside it, which is sent"
        else:
            text += "; is the same version of the module installed there?"
    problem = PayloadError(text)
    problem.__cause__ = error
    return problem


def item_of(task: tuple[Any, Any, Any] | None) -> exceptions.FailedItem:
    """Return which call of a task has failed; None if that is unknown."""
    with contextlib.suppress(Exception):  # a batch may be of a class of others
        if task is not None and (at := failed_call(*task)) is not None:
            return exceptions.FailedItem(at[0], call_text(*at[1]))
    return exceptions.NO_ITEM


def missing(error: BaseException) -> str:
    """Return the module that was not found, see `Failed.missing`; empty if the error is another one."""
    cause: BaseException | None = error
    while isinstance(cause, (ImportError, PayloadError)) and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    if not isinstance(cause, ModuleNotFoundError) or not isinstance(cause.name, str):
        return ""
    root = cause.name.partition(".")[0]
    try:
        is_here = root in sys.modules or importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        is_here = False
    return cause.name if is_here else root


def end_of_fork(error: BaseException | None) -> None:
    """End the child of a fork that a task made, which has returned here and must not answer a second time."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            file.flush()
    os._exit(code)


# --- the process ----------------------------------------------------------------------------------------------------


class StdStreams:
    """Standard output and error of a slot, which are restored after each task."""

    def __init__(self) -> None:
        self._saved: dict[int, int] = {}
        self._is: dict[int, tuple[int, int] | None] = {}
        self._files: dict[str, TextIO] = {}
        for name in ("stdout", "stderr"):
            self._rebuild(name)

    def lead(self, out: int, err: int) -> set[int]:
        """Redirect both to these files; return the file descriptors that must stay open."""
        for fd, to in ((1, out), (2, err)):
            saved = self._saved[fd] = fcntl.fcntl(to, fcntl.F_DUPFD_CLOEXEC, _high())
            self._is[fd] = _identity(saved)
            os.dup2(saved, fd)
        return set(self._saved.values())

    def flush(self) -> None:
        """Flush, and restore what a task has closed or replaced."""
        for fd, saved in self._saved.items():
            name = "stdout" if fd == 1 else "stderr"
            file = self._files[name]
            try:
                getattr(sys, name).flush()
                if _identity(fd) == self._is[fd] and getattr(sys, name) is file:
                    continue
            except Exception:  # noqa: S110 - closed or replaced by the task: repaired below
                pass
            if _identity(fd) != self._is[fd]:
                os.dup2(saved, fd)
            self._rebuild(name)

    def _rebuild(self, name: str) -> None:
        """Make a new file object: the old one may be closed, or contain text that could not be written."""
        fd = 1 if name == "stdout" else 2
        raw = open(fd, "wb", closefd=False)  # noqa: SIM115 - lives as long as the process
        file = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._files[name] = file
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


def _high() -> int:
    """Return where the slot's own descriptors start: below `_HIGH` if the limit of open files is low."""
    return max(3, min(_HIGH, open_files.limit() - _OURS))


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        stat = os.fstat(fd)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _isolate(slot: Slot, sock: int, out: int, err: int, tickets: int) -> None:
    """Separate a new fork from its parent: process group, files, signals, random seeds."""
    os.setpgid(0, 0)  # to be killed with all that it starts; the fork server's session, which stays, has no terminal
    keep = slot.streams.lead(out, err)
    needed = (sock, tickets, slot.imports.fd)
    high, claims, reports = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _high()) for fd in needed)
    close_all(keep={0, 1, 2, high, claims, reports, *keep})
    slot.imports.fd = reports
    heed_interrupts()
    numpy_random = sys.modules.get("numpy.random")  # the standard library's reseeds itself
    if numpy_random is not None:
        numpy_random.seed()
    slot.sock, slot.claims, slot.pid = socket.socket(fileno=high), Claims(claims), os.getpid()
    os.register_at_fork(after_in_child=lambda: close_inherited(slot, {claims, reports, *keep}))


def close_inherited(slot: Slot, fds: set[int]) -> None:
    """Close the slot's descriptors in a fork that a task made, which may outlive the slot and must not answer."""
    for fd in (slot.sock.detach(), *fds):
        os.closerange(fd, fd + 1)  # unlike close, it accepts closed ones


def prepare_modules() -> None:
    """Prepare modules and standard input in the fork server, as all slots need them."""
    main = types.ModuleType("__main__")  # processes that tasks spawn would import ours
    main.__loader__ = BuiltinImporter  # as at a prompt; by it `inspect` knows whether functions can have a source
    sys.modules["__main__"] = main
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    no_terminal.install()
    shared_segments.install()


def close_all(keep: set[int]) -> None:
    """Close all file descriptors except some."""
    try:
        fds = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - takes less memory than pathlib
    except OSError:
        fds = list(range(3, 256))
    for fd in fds:
        if fd not in keep:
            os.closerange(fd, fd + 1)  # unlike close, it accepts closed ones


def enter(around: list[str], stack: contextlib.ExitStack) -> None:
    """Enter the context managers around this slot's life."""
    for name in around:
        module, _, function = name.partition(":")
        stack.enter_context(getattr(importlib.import_module(module), function)())


def live(slot: Slot, number: int, shared: bool, sock: int, out: int, err: int, tickets: int) -> int:
    """Run a slot in this newly forked process; returns the exit status.

    Parameters
    ----------
    slot
        Made in the fork server.
    number
        The slot's number, for messages.
    shared
        Whether it runs tasks in threads.
    sock, out, err, tickets
        Its file descriptors, see `protocol.FILES`.
    """
    try:
        _isolate(slot, sock, out, err, tickets)
    except OSError as error:
        slot.sock = socket.socket(fileno=sock)
        slot.ready(f"slot {number} can't start: {error}")
        raise
    with contextlib.ExitStack() as stack:
        try:
            enter(slot.settings.around, stack)
        except BaseException as error:
            slot.ready(f"slot {number} can't start: {type(error).__name__}: {error}")
            raise
        slot.ready()
        slot.work(shared)
    atexit._run_exitfuncs()  # noqa: SLF001 - os._exit, which must follow, skips them
    slot.streams.flush()
    return 0
