"""What exists while a pool is open: its threads, its nodes and its tasks, from `start` to the end of the program.

`RunningPool` joins provisioner, dispatcher, listeners and plugins, and takes them apart again, in an order that leaves
nothing running or billed even if Ctrl-C comes at any moment. `skyward.core.pool.Compute` is what users see of it.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  so that its exit handler is registered before ours; see below
import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from skyward.core import nesting, pool_arguments, registry
from skyward.core.audience import Audience, Showing
from skyward.core.code.local_code import CodeSettings, LocalCode
from skyward.core.code.survey import is_own
from skyward.core.errors import ConfigError, VolumeFailed
from skyward.core.events import Events, Note, PoolClosed, PoolDraining, PoolReady, PoolStarted
from skyward.core.facts import Facts
from skyward.core.files.bucket_supply import BucketSource, BucketSupply
from skyward.core.files.folder import scan
from skyward.core.interfaces import Channel
from skyward.core.interrupts import Interrupts, result_of, wait_for
from skyward.core.ioloop import IOThread
from skyward.core.machines import preparation
from skyward.core.machines.plan import Plan
from skyward.core.machines.provision import Provisioner
from skyward.core.nodes.timing import Timing
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.payload.surroundings import Surroundings
from skyward.core.pool_arguments import PoolSettings
from skyward.core.protocol.buckets import Bucket
from skyward.core.protocol.messages import GPU_VARIABLES, THREAD_VARIABLES, Setup
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from skyward.core.results.screen import Screened
from skyward.core.spec import Endpoint
from skyward.core.status import PoolStatus
from skyward.core.system.conventions import conventions
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.volumes import LocalVolume, S3Volume

__all__ = ["RunningPool"]

_SLOW = 10.0  # seconds that checking a bucket may take before that is reported


class RunningPool:
    """A pool from its start to its end.

    Parameters
    ----------
    settings
        What the pool was asked for, with the image as its plugins have changed it.
    events
        Where the pool reports what happens.
    """

    def __init__(self, settings: PoolSettings, events: Events) -> None:
        self.pid = os.getpid()
        self._settings, self.events = settings, events
        make_dispatcher = _dispatcher(settings)  # may fail: no thread runs yet
        self.facts = Facts()
        self.showing = Showing(settings.name, settings.dashboard, events, self.facts)  # may fail as well
        self.contexts = contextlib.ExitStack()
        self._began = time.monotonic()
        self._io = IOThread(f"skyward-io-{settings.name}")
        self._io.on_error = self._unexpected
        self._reported: set[str] = set()  # errors
        self._uncount = events.subscribe(self.facts.handle, self.facts.kinds)
        self.audience = Audience(events, live=settings.console, facts=self.facts)
        self.dispatcher = make_dispatcher(
            self._io,
            events,
            isolated=settings.is_isolated,
            timeout=settings.timeout,
            attempts=settings.worker.attempts,
            answers=Answers(Reader(settings.trusted or Trusted()) if settings.reads_data else None),
            listeners=Listeners(self._open_screened if settings.reads_data else _open_stream),
            shares=CAN_SHARE and settings.is_partly_local,
            named="all" if settings.is_local else "none",
            surroundings=_surroundings(settings),
            supplier=settings.packages,
            local_code=CodeSettings(not settings.is_local, tuple(settings.image.local), tuple(settings.image.exclude)),
            name=f"skyward-{settings.name}",
        )
        runner = self.dispatcher.runner
        self.facts.at_nodes, self.facts.running = runner.schedule.at_nodes, runner.running
        self.provisioner = Provisioner(_plan(settings, self.dispatcher.code), runner, events, bring=runner.files.bring)
        self._closing = threading.Lock()  # taken by the first thread that closes, and never released
        self._ended = threading.Event()
        self._unsaved = ""  # which files that tasks wrote are not in their buckets, and why
        self._ready = False  # the minimum of nodes became ready
        _open.add(self)

    def __repr__(self) -> str:
        return f"{self.provisioner} {self.dispatcher}"

    def _unexpected(self, error: Exception) -> None:
        """Report an unexpected background error; each text only once, since it may recur."""
        text = f"{type(error).__name__}: {error}"
        if text not in self._reported:
            self._reported.add(text)
            self._warn(f"unexpected error in the background: {text}; its traceback is in Python's log")

    def _warn(self, text: str) -> None:
        self.events.emit(Note(text, warning=True))

    async def _open_screened(self, address: str) -> Channel:
        """`_open_stream` for machines that are not trusted: only data passes."""

        def report(refusal: str) -> None:
            self._warn(f"blocked a task's message to {address}: it {refusal}")

        return Screened(await _open_stream(address), report)

    def start(self) -> None:
        """Wait for the nodes; an interrupt ends the wait, and the caller closes."""
        settings = self._settings
        names = settings.provider_names
        volumes = settings.volumes
        folders = [(each, scan(os.fspath(each.source))) for each in volumes if isinstance(each, LocalVolume)]
        buckets = [_checked(volume, self.events) for volume in volumes if isinstance(volume, S3Volume)]
        self.events.emit(PoolStarted(settings.name, names, settings.nodes.max, settings.worker.slots))
        self.showing.start()
        self._find_code()
        if not settings.reads_data and pool_arguments.of_strangers(settings.providers):
            self._warn(f'results="any": whoever owns the machines of {names} can run code in this process')
        if folders:
            self._io.post(self.dispatcher.runner.files.mount, folders)
        if buckets:
            for volume, _, bucket in buckets:
                found = f"{bucket.size / 1e6:,.0f} MB in {bucket.files:,} files"
                how = "is copied to {place} on each node, and what tasks write there is copied back"
                if volume.read_only:
                    how = "is mounted at {place} on each node that has FUSE, and copied to the others"
                self.events.emit(Note(f"{bucket.url} ({found}) {how.format(place=volume.path)}"))
            make_supply = functools.partial(BucketSupply, volumes=buckets, warn=self._warn)
            self._io.post(self.dispatcher.runner.files.attach, make_supply)
        starting = self._io.start(self.provisioner.start())
        try:
            self._survey_code()
            result_of(starting)
        except BaseException:
            starting.cancel()
            raise
        self._ready = True
        self.events.emit(PoolReady(self.provisioner.slots, time.monotonic() - self._began))

    @property
    def is_over(self) -> bool:
        """Whether everything has been taken apart, or this is a fork of the driver."""
        return self._ended.is_set() or self.pid != os.getpid()

    def status(self) -> PoolStatus:
        """See `Compute.status`."""
        return self.facts.status()

    def _find_code(self) -> None:
        """Find the user's own code before anything is bought, and say what nodes get of that and of packages."""
        code, packages = self.dispatcher.code, self._settings.packages
        said = []
        if code is not None and code.sent:
            code.now(look=True)
            said = [f"sends {code.summary}"] if code.summary else []
            for text in code.warnings:
                self._warn(text)
        if packages is not None and (summary := packages.summary):
            said.append(f"nodes install {summary}")
        if said:
            self.events.emit(Note("; ".join(said)))

    def _survey_code(self) -> None:
        """Look through what is imported, which the first task would otherwise wait for; it reports what is wrong."""
        if (code := self.dispatcher.code) is not None:
            with contextlib.suppress(ConfigError):
                code.now()

    def download(self, pattern: str, to: str, *, overwrite: bool) -> list[Path]:
        """Fetch files that tasks have written.

        Parameters
        ----------
        pattern, to, overwrite
            As `Compute.download` has checked them.

        Raises
        ------
        DownloadFailed
            That is not possible; no file here has changed.
        """
        shared = self._settings.is_local and not self._settings.volumes
        fetching = self._io.start(
            self.dispatcher.runner.files.download(
                os.path.abspath(pattern) if shared else pattern,
                os.path.abspath(to),
                overwrite=overwrite,
                shared=shared,
                report=lambda text: self.events.emit(Note(text)),
            )
        )
        try:
            return result_of(fetching)
        except BaseException:
            fetching.cancel()
            raise

    def withdraw(self) -> None:
        """Cancel the tasks that have not started; from any thread."""
        self._post(self.dispatcher.withdraw_all)

    def _post(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._io.post(function)

    def close_aside(self) -> None:
        """Run `close` in a thread of its own."""
        threading.Thread(target=self._close_alone, name=f"skyward-close-{self._settings.name}", daemon=True).start()

    def _close_alone(self) -> None:
        with contextlib.suppress(VolumeFailed):  # the user was warned
            self.close()

    def close(self, cancel: bool = False) -> None:
        """Wait for the tasks, or cancel them, and take everything apart. May be repeated; every caller waits.

        An interrupt speeds it up; even then nothing is left running.

        Raises
        ------
        VolumeFailed
            Something that was written can't be saved to its bucket. Nodes are released even so.
        """
        if self.pid != os.getpid():
            return
        if cancel:
            self._post(self.dispatcher.cancel_all)
        with Interrupts() as interrupts:
            if self._closing.acquire(blocking=False):
                try:
                    self._close(cancel, interrupts)
                finally:
                    _open.discard(self)
                    self._ended.set()
            else:
                self._wait(interrupts)

    def _wait(self, interrupts: Interrupts) -> None:
        """Wait until another thread has closed the pool; an interrupt makes it cancel the tasks."""
        try:
            interrupts.let_in()
            wait_for(self._ended)
        except KeyboardInterrupt:
            self._post(self.dispatcher.cancel_all)
            interrupts.let_in()
            wait_for(self._ended)
            raise
        finally:
            interrupts.hold()

    def _close(self, cancel: bool, interrupts: Interrupts) -> None:
        try:
            interrupts.let_in()
            self.contexts.close()
            if not cancel:
                self._drain()
                self._warn_if_unused()
        finally:
            interrupts.hold()
            self.dispatcher.shut("this pool is closed; make a new sky.Compute")
            try:
                self._release_nodes(interrupts)  # after a second Ctrl-C the loop goes on releasing
            except Exception:
                self._take_apart()
                raise
            self._take_apart()
            if self._unsaved and not cancel:  # with an error or an interrupt already on its way, it is a warning
                raise VolumeFailed(self._unsaved)

    def _drain(self) -> None:
        if self.dispatcher.unfinished:
            self.events.emit(PoolDraining())
        try:
            self.dispatcher.kept.wait()
            result_of(self._io.start(self.dispatcher.runner.drained()))
        except KeyboardInterrupt:
            self.report_cancelled()
            raise

    def report_unfinished(self) -> None:
        """Explain why the program does not exit although it has finished."""
        if left := self.dispatcher.unfinished:
            tasks = f"{left} task{'s' if left > 1 else ''} of {self._settings.name}"
            self.events.emit(Note(f"the program has finished but waits for {tasks}; press Ctrl-C to cancel them"))

    def report_cancelled(self) -> None:
        """Report which tasks nobody waits for any longer."""
        if left := self.dispatcher.unfinished:
            self._warn(f"cancelled {left} unfinished task{'s' if left > 1 else ''} of {self._settings.name}")

    def _warn_if_unused(self) -> None:
        if self._ready and not self.dispatcher.used:
            how = "n_jobs=-1" if self._settings.plugins else "n_jobs=-1 and plugins=[sky.plugins.joblib()]"
            self._warn(
                f"no task was sent to the nodes of {self._settings.name}: Parallel uses them only with {how}; plain "
                "functions run there through pool.map, pool.submit or `call >> pool`"
            )

    def _take_apart(self) -> None:
        preparation.discard(self._settings.providers, self._settings.order.tag)
        self._io.stop()
        try:
            self.dispatcher.close()
        finally:  # a user's callback may have called sys.exit()
            self.events.emit(PoolClosed(time.monotonic() - self._began))
            self.showing.close()
            self.audience.close()
            self._uncount()

    def _release_nodes(self, interrupts: Interrupts) -> None:
        releasing = self._io.start(self._release())
        warned = False
        while True:
            try:
                interrupts.let_in()
                result_of(releasing)
                return
            except KeyboardInterrupt:
                if warned:
                    raise
            finally:
                interrupts.hold()
            warned = True
            again = (
                "leaves that to a background process; check with `skyward ls`"
                if self._settings.renting
                else f"leaves them to terminate on their own within {self._settings.order.orphan_timeout:g} s"
            )
            self._warn(f"releasing the nodes of {self._settings.name}; a second Ctrl-C {again}")

    async def _release(self) -> None:
        self.dispatcher.cancel_all()
        files = self.dispatcher.runner.files
        try:
            if unsaved := await files.flush():
                self._unsaved = f"some of what was written is not saved: {'; '.join(unsaved)}"
                self._warn(self._unsaved)
        finally:
            files.stop()
            await self.provisioner.stop()


_open: weakref.WeakSet[RunningPool] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the program, let pools that nobody closed finish their tasks, as the standard executors do."""
    cancel, pools = False, [pool for pool in _open if pool.pid == os.getpid()]
    try:
        with Interrupts():  # one that arrives while a listener shows this would be lost there
            for pool in pools:
                pool.report_unfinished()
    except KeyboardInterrupt:
        cancel = True
        for pool in pools:
            pool.report_cancelled()
    for pool in pools:
        try:
            pool.close(cancel=cancel)
        except KeyboardInterrupt:
            cancel = True
        except VolumeFailed:
            continue  # the user was warned


# Releasing machines needs threads of concurrent.futures, which ends them before atexit's turn. It registers its own
# handler here when it is imported, which is above; handlers run in reverse order.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _checked(volume: S3Volume, events: Events) -> tuple[S3Volume, BucketSource, Bucket]:
    """Find out what is in a bucket, and whether nodes will be able to use it."""
    store: BucketSource = registry.load(registry.STORES, "s3")(volume)
    text = f"{volume.url}: the store has not answered for {_SLOW:.0f} s, or has many files to list; still waiting"
    slow = threading.Timer(_SLOW, events.emit, [Note(text)])
    slow.name, slow.daemon = "skyward-slow-bucket", True
    slow.start()
    try:
        return volume, store, store.check()
    finally:
        slow.cancel()
        slow.join()


async def _open_stream(address: str) -> Channel:
    """Connect to a listening socket of multiprocessing's, for a slot's Manager proxies and the like."""
    link = await registry.load(registry.TRANSPORTS, "tcp")().connect(Endpoint("tcp", "127.0.0.1"), 5.0)
    channel: Channel = await link.open_channel(address)
    return channel


def _plan(settings: PoolSettings, code: LocalCode | None) -> Plan:
    """What the provisioner is asked for."""
    packages = settings.packages
    return Plan(
        settings.providers,
        settings.nodes,
        settings.order,
        settings.image,
        _setup(settings),
        Timing(),
        None if packages is None else packages.lists,
        settings.budget,
        None if packages is None or code is None else packages.builds(code.compiled).lack,
    )


def _setup(settings: PoolSettings) -> Setup:
    """What every agent of the pool is sent first."""
    image, local = settings.image, settings.is_local
    return Setup(
        node="",
        concurrency=settings.worker.slots,
        isolated=settings.is_isolated,
        threads=settings.worker.threads,
        env=image.task_env,
        conventions={} if local else conventions(os.environ),
        path=[os.path.abspath(entry) for entry in sys.path] if local else [],
        cwd=os.getcwd() if local and not settings.volumes else None,
        preload=[name for name in image.preload if not is_own(name)],  # slots must see the user's edits
        data=settings.reads_data,
        code=not local,
        around=[name for plugin in settings.plugins if (name := plugin.around_worker()) is not None],
        orphan_timeout=settings.order.orphan_timeout,
        argv=[str(argument) for argument in getattr(sys, "argv", [])],
        depth=nesting.depth(),
        gpus=settings.worker.gpus or 0.0,
    )


def _dispatcher(settings: PoolSettings) -> Callable[..., Dispatcher]:
    """Return the factory of the pool's dispatcher. Opens the resume file, if there is one."""
    if settings.resume is None:
        return Dispatcher
    from skyward.core.resume.resuming import resuming  # noqa: PLC0415 - a pool without a resume file needs no SQLite

    return resuming(settings.resume, settings.image.pip)


def _surroundings(settings: PoolSettings) -> Surroundings:
    """Which of this process's surroundings tasks share: all but what was set explicitly for them."""
    worker = settings.worker
    kept = [
        *settings.image.task_env,
        *(THREAD_VARIABLES if worker.threads else ()),
        *(GPU_VARIABLES if worker.gpus else ()),
    ]
    return Surroundings(shared=settings.is_local, kept=kept, moves=not settings.volumes)
