"""`Compute`, the with-block: joins provider, nodes, dispatcher, plugins and console, and takes them apart again."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  so that its handler of the exit comes after ours; see below
import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from skyward.core import nesting, pool_arguments, registry
from skyward.core.audience import Audience
from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.events import Events, Note, PoolClosed, PoolReady, PoolStarted
from skyward.core.executor import TaskExecutor
from skyward.core.interfaces import Channel, Plugin, Provider, Trait
from skyward.core.interrupts import Interrupts
from skyward.core.ioloop import IOThread
from skyward.core.machines.provision import Plan, Provisioner
from skyward.core.nodes.session import Timing
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.payload.surroundings import Surroundings
from skyward.core.protocol.messages import THREAD_VARIABLES, Setup
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from skyward.core.results.screen import Screened
from skyward.core.spec import Allocation, Endpoint, Image, Nodes, Order, Resources, Volume, Worker, parse_seconds
from skyward.core.system import open_files
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.listening_sockets import Listeners

__all__ = ["Compute", "ComputePool"]

_numbers = itertools.count(1)
_LEAST_MEMORY = 2 * 2**30  # bytes of a bought machine where nothing is said
_FILES_HERE = 4  # that a node on this machine takes of ours, while it starts
_FILES_OURS = 16  # that the pool takes itself, with some for a task that is being sent
_FILES_LOGIN = 32  # the same, with a few logins under way
_NOT_ACTIVE = (
    "Backend not configured: use the pool as a context manager "
    "(with sky.Compute(...) as pool: ...), or call its start()"
)


class Compute(TaskExecutor):
    """A pool of machines that run Python functions; also a `concurrent.futures.Executor`.

    Parameters
    ----------
    provider
        A provider, or the name of one; several in a list are asked in order. None: this machine.
    nodes
        How many machines. With ``(min, max)``, max are asked for; the block begins once min are ready, and the rest
        join later.
    worker
        How each node runs tasks.
    concurrency
        Short for ``worker=Worker(concurrency=...)``.
    machine, accelerator, vcpus, memory
        What each node must have; see `Resources`. ``cpu`` is another name of ``vcpus``. When nothing is said, machines
        that are bought have a core for each slot and 2 GiB.
    max_price
        Maximum price per machine, in US dollars per hour. None: no limit, except that machines which cost over five
        times the cheapest one, or whose price is not known, are not bought unless `machine` names them.
    image
        What each node's environment holds.
    volume
        Storage that the nodes show; ``volumes`` is another name. Not in this version: giving any is an error.
    allocation
        Whether to rent spot machines, which the provider may take back: ``"spot-if-available"`` does while they cost no
        more than others, ``"always-spot"`` takes only them, ``"on-demand"`` none, and ``"cheapest"`` goes by price
        alone, also across providers.
    timeout
        How long one task may run, in seconds; None for no limit.
    plugins
        Changes to the pool, such as `sky.plugins.joblib()`.
    results
        ``"data"``: what comes back is read as data, so that a machine can't run code here. ``"any"``: any object, as
        pickle does. None: data where the provider's machines belong to strangers, such as Vast.ai's; otherwise any.
    trusted
        Classes that results may hold where they are read as data, besides plain values, numpy, pandas, scipy.sparse and
        scikit-learn: the classes themselves, ``"package.module:Class"``, or ``"package.module"`` for all its classes.
    console
        Whether to show a live line and a summary where there is a terminal.
    orphan_timeout
        How long a node lives without hearing from this program, in seconds; then it ends by itself.

    Raises
    ------
    ConfigError
        An argument is wrong. Nothing was started.

    Examples
    --------
    >>> import skyward as sky
    >>> with sky.Compute(concurrency=2) as pool:  # doctest: +SKIP
    ...     pool.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        provider: Provider | str | Sequence[Provider | str] | None = None,
        nodes: int | tuple[int, int] = 1,
        worker: Worker | None = None,
        concurrency: int | None = None,
        *,
        machine: str | None = None,
        accelerator: str | None = None,
        vcpus: int | None = None,
        cpu: int | None = None,
        memory: int | str | None = None,
        image: Image | None = None,
        volume: Sequence[Volume] | Volume = (),
        volumes: Sequence[Volume] | Volume = (),
        allocation: Allocation = "spot-if-available",
        max_price: float | None = None,
        timeout: float | None = 3600,
        plugins: Sequence[Plugin] = (),
        results: Literal["data", "any"] | None = None,
        trusted: Sequence[Any] = (),
        console: bool = True,
        orphan_timeout: float = 600.0,
    ) -> None:
        self.name = f"sky-{os.getpid()}-{next(_numbers)}-{os.urandom(3).hex()}"
        self.providers = pool_arguments.providers(provider)
        self.nodes = Nodes.parse(nodes)
        self.worker = (
            pool_arguments.either("worker", worker, "concurrency", concurrency, lambda n: Worker(concurrency=n))
            or Worker()
        )
        self.events = Events()
        self._check(self.worker, Worker, "worker")
        self._check(image, Image, "image", optional=True)
        cores = pool_arguments.either("vcpus", vcpus, "cpu", cpu)
        self._order = Order(
            tag=self.name,
            count=self.nodes.max,
            resources=_resources(Resources(machine, accelerator, cores, memory, max_price), self.worker),
            allocation=allocation,
            orphan_timeout=parse_seconds(orphan_timeout, "orphan_timeout") or 600.0,
        )
        self._timeout = parse_seconds(timeout, "timeout")
        self._plugins = pool_arguments.plugins(plugins)
        self._volumes = pool_arguments.either("volume", volume or None, "volumes", volumes or None)
        if self._volumes:
            raise ConfigError(
                f"volume={self._volumes!r}: volumes are not in this version yet; read the data on the nodes some other "
                "way, or pass it as an argument: a large array is sent to each node once"
            )
        self._isolated = self.worker.executor != "thread"
        self._image = image or Image()
        self._trusted = Trusted.parse(trusted)
        self._reads_data = pool_arguments.reads_data(results, self.providers)
        self.console = console
        self._state: _Running | None = None
        self._ending: _Running | None = None
        self._used = False

    @staticmethod
    def _check(value: object, kind: type, name: str, optional: bool = False) -> None:
        if not isinstance(value, kind) and not (optional and value is None):
            raise ConfigError(f"{name}={value!r} is not a sky.{kind.__name__}")

    def __repr__(self) -> str:
        names = ", ".join(provider.name for provider in self.providers)
        state = "not entered" if self._state is None else repr(self._state)
        return f"<Compute {self.name} on {names}: {state}>"

    # --- life ---

    def start(self) -> Self:
        """Get the nodes; for notebooks, where a with-block is unwieldy. End it with `close`.

        Raises
        ------
        PoolNotActive
            It was started before.
        NestedPool
            A task may not open it: it goes too deep, would rent machines, or is opened by an import.
        ProvisioningError, LinkError
            The nodes can't be provisioned; everything that was begun has been given back.
        """
        if self._used:
            raise PoolNotActive("this pool was entered before; make a new sky.Compute for each block")
        nesting.check([provider.name for provider in self.providers if Trait.RENTED in provider.traits])
        self._check_files()
        self._used = True
        image = self._image
        for plugin in self._plugins:
            here = all(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in self.providers)
            image = plugin.transform_image(image, driver_environment=here)
        state = _Running(self, image)
        # A pool that is dropped ends when its tasks have, in a thread: collection may happen anywhere, in the I/O
        # thread too.
        weakref.finalize(self, state.close_aside).atexit = False
        try:
            state.start()
            self._state = state
            # joblib must find an open pool by its backend's name, with or without a plug-in.
            state.audience.enter(self, state.contexts)
            for plugin in self._plugins:
                if (context := plugin.around_client(self)) is not None:
                    state.contexts.enter_context(context)
        except BaseException:
            self._state = state
            self.close(cancel=True)
            raise
        return self

    def _check_files(self) -> None:
        """Before anything is bought: whether this process may open what its nodes need."""
        here = any(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in self.providers)
        ours, each = (_FILES_OURS, _FILES_HERE) if here else (_FILES_LOGIN, 1)
        left = open_files.left()
        if (needed := ours + each * self.nodes.max) > left:
            fit = (left - ours) // each
            instead = f"or ask for at most {fit} nodes with more slots each" if fit > 0 else "or close some"
            raise ConfigError(
                f"nodes={self.nodes.max} need {needed} open files in this process, which may open {left} more: "
                f"{open_files.advice(needed)}, {instead}"
            )

    def close(self, cancel: bool = False) -> None:
        """Wait for the tasks (or give them up with `cancel`), end the nodes and give them back. May be repeated."""
        if (state := self._last()) is not None:
            state.close(cancel=cancel)
            self._ending = None

    def _last(self) -> _Running | None:
        """What `start` made, while it has not come to its end; no task is taken from now on."""
        state, self._state = self._state, None
        self._ending = state or self._ending
        return self._ending

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(cancel=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool as `concurrent.futures.Executor.shutdown` says: calls that run finish.

        Parameters
        ----------
        wait
            Whether to wait until the nodes have ended. Otherwise that happens in the background, and the program does
            not end before.
        cancel_futures
            Cancel the calls that have not begun.
        """
        if (state := self._last()) is None:
            return
        if cancel_futures:
            state.withdraw()
        if wait:
            state.close()
            self._ending = None
        else:
            state.contexts.close()  # here, since those that entered it may be known by their thread
            state.close_aside()

    # --- use ---

    def _running(self) -> _Running:
        state = self._state
        if state is None:
            raise PoolNotActive("this pool is closed; make a new sky.Compute" if self._used else _NOT_ACTIVE)
        if state.pid != os.getpid():
            raise PoolNotActive("this pool belongs to the process that opened it, not to a fork of it: open one here")
        return state

    @property
    def is_active(self) -> bool:
        """Whether tasks can be submitted now."""
        return self._state is not None and self._state.pid == os.getpid()

    @property
    def dispatcher(self) -> Dispatcher:
        """Where front ends submit tasks."""
        return self._running().dispatcher

    @property
    def total_slots(self) -> int:
        """Slots of the nodes that are ready: nodes x concurrency."""
        return self._running().provisioner.slots

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes that are ready, in order."""
        return self._running().provisioner.nodes


ComputePool = Compute


class _Running:
    """What exists while a pool is open."""

    def __init__(self, pool: Compute, image: Image) -> None:
        self.pid = os.getpid()
        self.contexts = contextlib.ExitStack()
        self.events = pool.events
        self._began = time.monotonic()
        self._name = pool.name
        self._io = IOThread(f"skyward-io-{pool.name}")
        self._io.on_error = self._unexpected
        self._said: set[str] = set()  # errors
        self.audience = Audience(pool.events, live=pool.console)
        local = [Trait.DRIVER_ENVIRONMENT in provider.traits for provider in pool.providers]
        self.dispatcher = Dispatcher(
            self._io,
            pool.events,
            isolated=pool._isolated,
            timeout=pool._timeout,
            attempts=pool.worker.attempts,
            answers=Answers(Reader(pool._trusted) if pool._reads_data else None),
            listeners=Listeners(self._open_data if pool._reads_data else _open_stream),
            shares=CAN_SHARE and any(local),
            named="all" if CAN_SHARE and all(local) else "none",
            surroundings=_surroundings(pool, image, shared=all(local)),
            name=f"skyward-{pool.name}",
        )
        plan = Plan(pool.providers, pool.nodes, pool._order, image, _setup(pool, image), Timing())
        self.provisioner = Provisioner(plan, self.dispatcher, pool.events)
        self._plan = plan
        self._reads_data = pool._reads_data
        self._worker = pool.worker
        self._closing = threading.Lock()  # taken by the first who closes, and not let go
        self._ended = threading.Event()
        self._ready = False  # nodes were waited for, and had
        self._has_plugins = bool(pool._plugins)
        _open.add(self)

    def __repr__(self) -> str:
        return f"{self.provisioner} {self.dispatcher}"

    def _unexpected(self, error: Exception) -> None:
        """Something failed in the background that should not; once for each kind, since it may come again and again."""
        text = f"{type(error).__name__}: {error}"
        if text not in self._said:
            self._said.add(text)
            self.events.emit(
                Note(f"unexpected error in the background: {text}; its traceback is in Python's log", warning=True)
            )

    async def _open_data(self, address: str) -> Channel:
        """The same from machines that are not trusted: what they say is passed on as far as it is data."""

        def tell(refusal: str) -> None:
            self.events.emit(Note(f"a task's message to {address} was not passed on: it {refusal}", warning=True))

        return Screened(await _open_stream(address), tell)

    def start(self) -> None:
        """Get the nodes; an interrupt ends the wait, and the caller closes."""
        names = ", ".join(provider.name for provider in self._plan.providers)
        self.events.emit(PoolStarted(self._name, names, self._plan.nodes.max, self._worker.concurrency))
        if not self._reads_data and pool_arguments.of_strangers(self._plan.providers):
            trusts = f'results="any": whoever owns the machines of {names} can run code in this process'
            self.events.emit(Note(trusts, warning=True))
        starting = self._io.start(self.provisioner.start())
        try:
            starting.result()
        except BaseException:
            starting.cancel()
            raise
        self._ready = True
        self.events.emit(PoolReady(self.provisioner.slots, time.monotonic() - self._began))

    def withdraw(self) -> None:
        """Cancel what has not begun; from any thread."""
        self._post(self.dispatcher.withdraw_all)

    def _post(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._io.post(function)

    def close_aside(self) -> None:
        """`close`, in a thread of its own."""
        threading.Thread(target=self.close, name=f"skyward-close-{self._name}", daemon=True).start()

    def say_if_unfinished(self) -> None:
        """Say why the program does not end though it has come to its end."""
        if left := self.dispatcher.unfinished:
            tasks = f"{left} task{'s' if left > 1 else ''} of {self._name}"
            self.events.emit(Note(f"the program has come to its end and waits for {tasks}; Ctrl-C gives them up"))

    def close(self, cancel: bool = False) -> None:
        """Wait for the tasks or give them up, and take everything apart. May be repeated; all wait for the end.

        An interrupt makes it hurry; nothing is left running even so.
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
        """Until another thread has closed it; an interrupt makes that one hurry."""
        try:
            interrupts.let_in()
            self._ended.wait()
        except KeyboardInterrupt:
            self._post(self.dispatcher.cancel_all)
            interrupts.let_in()
            self._ended.wait()
            raise
        finally:
            interrupts.hold()

    def _close(self, cancel: bool, interrupts: Interrupts) -> None:
        try:
            interrupts.let_in()
            self.contexts.close()
            if not cancel:
                self._drain()
                self._say_if_unused()
        finally:
            interrupts.hold()
            self.dispatcher.shut("this pool is closed; make a new sky.Compute")
            try:
                self._end_nodes(interrupts)  # a second Ctrl-C leaves the loop alive, which goes on to give back
            except Exception:
                self._take_apart()
                raise
            self._take_apart()

    def _drain(self) -> None:
        try:
            self._io.start(self.dispatcher.drained()).result()
        except KeyboardInterrupt:
            self.say_given_up()
            raise

    def say_given_up(self) -> None:
        """Say what is not waited for any more."""
        if left := self.dispatcher.unfinished:
            self.events.emit(Note(f"gave up {left} tasks of {self._name}", warning=True))

    def _say_if_unused(self) -> None:
        if self._ready and not self.dispatcher.used:
            how = "n_jobs=-1" if self._has_plugins else "n_jobs=-1 and plugins=[sky.plugins.joblib()]"
            self.events.emit(
                Note(
                    f"no task was sent to the nodes of {self._name}: Parallel uses them only with "
                    f"{how}, and plain functions run there by pool.map, pool.submit or `call >> pool`",
                    warning=True,
                )
            )

    def _take_apart(self) -> None:
        self._io.stop()
        self.dispatcher.close()
        self.events.emit(PoolClosed(time.monotonic() - self._began))
        self.audience.close()

    def _end_nodes(self, interrupts: Interrupts) -> None:
        is_rented = any(Trait.RENTED in provider.traits for provider in self._plan.providers)
        ending = self._io.start(self._give_back())
        told = False
        while True:
            try:
                interrupts.let_in()
                ending.result()
                return
            except KeyboardInterrupt:
                if told:
                    raise
            finally:
                interrupts.hold()
            told = True
            instead = (
                "leaves that to a process in the background: look with `skyward ls`"
                if is_rented
                else f"leaves them to end by themselves within {self._plan.order.orphan_timeout:g} s"
            )
            self.events.emit(Note(f"giving back the nodes of {self._name}; Ctrl-C again {instead}", warning=True))

    async def _give_back(self) -> None:
        self.dispatcher.cancel_all()
        await self.provisioner.stop()


_open: weakref.WeakSet[_Running] = weakref.WeakSet()


def _close_all() -> None:
    """The program ends: pools that nobody closed finish their tasks, as executors of the standard library do."""
    hurry, pools = False, [state for state in _open if state.pid == os.getpid()]
    try:
        with Interrupts():  # one that came while a listener shows this would be lost there
            for state in pools:
                state.say_if_unfinished()
    except KeyboardInterrupt:
        hurry = True
        for state in pools:
            state.say_given_up()
    for state in pools:
        try:
            state.close(cancel=hurry)
        except KeyboardInterrupt:
            hurry = True


# Giving machines back takes threads of concurrent.futures, whose own end comes before atexit's turn. It registers here
# too, when it is imported, which is above; what was registered later is called earlier.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


async def _open_stream(address: str) -> Channel:
    """A stream to a listening socket of multiprocessing's, for a slot's Manager proxies and the like."""
    link = await registry.load(registry.TRANSPORTS, "tcp")().connect(Endpoint("tcp", "127.0.0.1"), 5.0)
    channel: Channel = await link.open_channel(address)
    return channel


def _setup(pool: Compute, image: Image) -> Setup:
    """What every agent of the pool is told."""
    here = all(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in pool.providers)
    return Setup(
        node="",
        concurrency=pool.worker.concurrency,
        isolated=pool._isolated,
        threads=pool.worker.threads,
        env=dict(image.env),
        path=[os.path.abspath(entry) for entry in sys.path] if here else [],
        cwd=os.getcwd() if here else None,
        preload=list(image.preload),
        data=pool._reads_data,
        around=[name for plugin in pool._plugins if (name := plugin.around_worker()) is not None],
        orphan_timeout=pool._order.orphan_timeout,
        argv=[str(argument) for argument in getattr(sys, "argv", [])],
        depth=nesting.depth(),
    )


def _surroundings(pool: Compute, image: Image, *, shared: bool) -> Surroundings:
    """What tasks find as it is here, but for what was given to them expressly."""
    return Surroundings(shared=shared, kept=[*image.env, *(THREAD_VARIABLES if pool.worker.threads else ())])


def _resources(wanted: Resources, worker: Worker) -> Resources:
    """What is asked for; where nothing is, the cheapest machine would be one on which nothing runs."""
    if wanted.machine or wanted.accelerator or wanted.vcpus or wanted.memory:
        return wanted
    return replace(wanted, vcpus=worker.concurrency, memory=_LEAST_MEMORY)
