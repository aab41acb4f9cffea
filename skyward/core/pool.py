"""`Compute`, the with-block: a pool of nodes, and a `concurrent.futures.Executor`.

Here are its arguments and its life as users see it; what exists while it is open is `skyward.core.running_pool`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from skyward.core import nesting, pool_arguments
from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.events import AtPrompt, Events
from skyward.core.executor import TaskExecutor
from skyward.core.image import Image
from skyward.core.interfaces import Dashboard, Plugin, Provider
from skyward.core.interrupts import Interrupts
from skyward.core.machines import preparation
from skyward.core.pool_arguments import PoolSettings
from skyward.core.spec import Allocation, Nodes, Order, Resources, Worker, parse_budget, parse_seconds
from skyward.core.visible import shown
from skyward.core.volumes import Volume

if TYPE_CHECKING:
    from skyward.core.packages.planner import PackagePlan
    from skyward.core.running_pool import RunningPool
    from skyward.core.status import PoolStatus
    from skyward.core.tasks.dispatch import Dispatcher

__all__ = ["Compute", "ComputePool"]

_numbers = itertools.count(1)
_NOT_ENTERED = (
    "Backend not configured: use the pool as a context manager "
    "(with sky.Compute(...) as pool: ...), or call its start()"
)


class Compute(TaskExecutor):
    """A pool of machines that run Python functions; also a `concurrent.futures.Executor`.

    Parameters
    ----------
    provider
        A provider or its name, or a list of several, tried in order. None means this machine.
    nodes
        Number of machines. ``(min, max)`` requests max, starts the block once min are ready, and lets the rest join
        later.
    worker
        How each node runs tasks.
    concurrency
        Short for ``worker=Worker(concurrency=...)``.
    machine, accelerator, vcpus, cpu, memory
        What each node must have; see `Resources`. ``cpu`` is another name for ``vcpus``. If none is given, rented
        machines have a core per slot and 2 GiB of memory.
    image
        The environment in which nodes run tasks.
    volume, volumes
        Folders that tasks find on every node, such as ``LocalVolume("data", "./data")``; ``volumes`` is another name.
        With a volume, even tasks on this machine run in a folder of the pool's own.
    allocation
        Whether to rent spot machines, which the provider may preempt. ``"spot-if-available"``: if they cost no more
        than on-demand ones; ``"always-spot"``: only spot; ``"on-demand"``: never spot; ``"cheapest"``: whatever costs
        least, across all providers.
    max_price
        Maximum price per machine, in US dollars per hour. None means no limit, except that machines which cost more
        than five times the cheapest one, or whose price is unknown, are only rented if `machine` names them.
    budget
        The most that the pool may cost from start to end, in US dollars; None means no limit. Each machine is rented
        with an equal share and is terminated once that is used up; where the provider allows it, the machine does so
        itself, even if this program no longer runs. The remaining tasks then fail with `BudgetExceeded`. Costs are
        counted from the machines' prices; network traffic and the like are not included.
    timeout
        Time limit of one task, in seconds; None for no limit.
    plugins
        Changes to the pool, such as `sky.plugins.joblib()`.
    results
        ``"data"``: results are read as data, so that a node can't run code on this machine. ``"any"``: results may be
        any object, as with pickle. None: data if the provider's machines belong to strangers, as Vast.ai's do;
        otherwise any.
    trusted
        Classes that results may contain when they are read as data, in addition to plain values, numpy, pandas,
        scipy.sparse and scikit-learn: the classes themselves, ``"package.module:Class"``, or ``"package.module"`` for
        all classes of a module.
    console
        Whether to show a live line and a summary if there is a terminal.
    orphan_timeout
        Seconds for which a node keeps running without contact to this program before it shuts down.
    dashboard
        Whether to show the pool on a live page, for a browser on this machine (see `dashboard_link`): True for any free
        port, or a port number. Needs the extra ``[dashboard]``.
    resume
        A file that stores the results of finished calls: if the program ends early, for whatever reason, the next run
        takes them from there and computes only the rest. None: results are not stored.

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
        budget: float | None = None,
        timeout: float | None = 3600,
        plugins: Sequence[Plugin] = (),
        results: Literal["data", "any"] | None = None,
        trusted: Sequence[Any] = (),
        console: bool = True,
        orphan_timeout: float = 600.0,
        dashboard: bool | int = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        name = f"sky-{os.getpid()}-{next(_numbers)}-{os.urandom(3).hex()}"
        if worker is not None:
            pool_arguments.check_type(worker, Worker, "worker")
        if image is not None:
            pool_arguments.check_type(image, Image, "image")
        providers = pool_arguments.providers(provider)
        count = pool_arguments.check_machines(Nodes.parse(nodes), providers)
        worker = pool_arguments.either("worker", worker, "concurrency", concurrency, lambda n: Worker(concurrency=n))
        worker = worker or Worker()
        cores = pool_arguments.either("vcpus", vcpus, "cpu", cpu)
        mounts = pool_arguments.volumes(
            pool_arguments.either("volume", volume or None, "volumes", volumes or None) or ()
        )
        order = Order(
            tag=name,
            count=count.max,
            resources=pool_arguments.with_defaults(Resources(machine, accelerator, cores, memory, max_price), worker),
            allocation=allocation,
            orphan_timeout=parse_seconds(orphan_timeout, "orphan_timeout") or 600.0,
        )
        self._settings = PoolSettings(
            name=name,
            providers=providers,
            nodes=count,
            worker=worker,
            order=order,
            image=image or Image(),
            timeout=parse_seconds(timeout, "timeout"),
            plugins=pool_arguments.plugins(plugins),
            trusted=pool_arguments.trusted(trusted),
            reads_data=pool_arguments.reads_data(results, providers),
            console=console,
            volumes=mounts,
            resume=pool_arguments.resume(resume),
            budget=parse_budget(budget),
            dashboard=pool_arguments.dashboard(dashboard),
        )
        self.events = Events()
        self._open: RunningPool | None = None  # between `start` and the beginning of the end
        self._ending: RunningPool | None = None
        self._page: Dashboard | None = None
        self._used = False

    def __repr__(self) -> str:
        if (opened := _alive(self._open or self._ending)) is not None:
            return f"<Compute {shown(opened.status().headline)}>"
        state = "closed" if self._used else "not entered"
        return f"<Compute {self.name} on {self._settings.provider_names}: {state}>"

    def _repr_html_(self) -> str | None:
        """How notebooks show it."""
        return opened.status()._repr_html_() if (opened := _alive(self._open or self._ending)) is not None else None

    @property
    def name(self) -> str:
        """Unique name of the pool; everything it rents is tagged with it."""
        return self._settings.name

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Where its machines come from, in order of preference."""
        return self._settings.providers

    # --- life ---

    @classmethod
    def named(cls, name: str, **arguments: Any) -> Self:
        """Create a pool described in a configuration file: ``with sky.Compute.named("gpu") as pool:``.

        Parameters
        ----------
        name
            The pool's table: ``[tool.skyward.pools.NAME]`` in the pyproject.toml of this folder or one above it, else
            ``[pools.NAME]`` in ``~/.config/skyward/config.toml``.
        **arguments
            Arguments of `Compute` that replace those of the file.

        Raises
        ------
        ConfigError
            No file describes such a pool, or something in it is wrong.
        """
        from skyward.core import named_pools  # noqa: PLC0415 - TOML takes 5 ms

        with named_pools.described(name):
            return cls(**named_pools.arguments(name, inspect.signature(cls).parameters, arguments))

    def start(self) -> Self:
        """Start the nodes; for notebooks, where a with-block is awkward. End the pool with `close`.

        Raises
        ------
        PoolNotActive
            The pool was started before.
        NestedPool
            It must not be opened here: pools would nest too deeply, a task would rent machines, or a module opens it
            while it is imported.
        ResumeFileError
            The resume file can't be used.
        ProvisioningError, LinkError
            The nodes can't be provisioned; everything that was started has been released.
        """
        Compute.__enter__(self)  # not a subclass's, which may be for blocks only
        if hasattr(sys, "ps1"):
            self.events.emit(AtPrompt())
        return self

    def _make(self) -> RunningPool:
        """Check what can be checked now, and make what `start` starts."""
        if self._used:
            raise PoolNotActive("this pool was already used; make a new sky.Compute for each block")
        settings = self._settings
        nesting.check(settings.renting)
        pool_arguments.check_mounts(settings)
        pool_arguments.check_open_files(settings)
        self._used = True
        opened = None
        try:
            with Interrupts():  # an interrupt halfway would leave a process or a thread that nobody ends
                preparation.prepare(settings.providers, settings.order)
            settings = _complete(settings)
            from skyward.core.running_pool import RunningPool  # noqa: PLC0415 - 0.05 s in which nodes start as well

            with Interrupts():
                opened = RunningPool(settings, self.events)
                # A pool that is dropped ends after its tasks, in a thread: garbage collection may run anywhere, even in
                # the I/O thread.
                weakref.finalize(self, opened.close_aside).atexit = False
            self._page = opened.showing.page
        except BaseException:
            preparation.discard(settings.providers, settings.order.tag)
            self._open = opened
            self.close(cancel=True)
            raise
        return opened

    def _enter(self, opened: RunningPool) -> None:
        """Let front ends and plugins use a pool whose nodes are ready, in this thread if it depends on threads."""
        self._open = opened
        # joblib must find an open pool by its backend's name, with or without a plugin.
        opened.audience.enter(self, opened.contexts)
        for plugin in self._settings.plugins:
            if (context := plugin.around_client(self)) is not None:
                opened.contexts.enter_context(context)

    def close(self, cancel: bool = False) -> None:
        """Wait for the tasks, or cancel them with `cancel`, and release the nodes. May be repeated."""
        if (opened := self._last()) is not None:
            opened.close(cancel=cancel)
            self._ending = None

    def _last(self) -> RunningPool | None:
        """Stop accepting tasks, and return the pool that `start` opened unless it has ended."""
        opened, self._open = self._open, None
        self._ending = opened or self._ending
        return self._ending

    def __enter__(self) -> Self:
        opened = self._make()
        try:
            opened.start()
            self._enter(opened)
        except BaseException:
            self._open = opened
            self.close(cancel=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(cancel=kind is not None)

    async def __aenter__(self) -> Self:
        """Like ``with``, but other coroutines keep running while the nodes start, and while the last tasks end."""
        opened = self._make()
        try:
            await asyncio.to_thread(opened.start)
            self._enter(opened)
        except BaseException:
            self._open = opened
            await _close_aside(self, cancel=True)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if (opened := self._last()) is not None:
            opened.contexts.close()  # in this thread, since contexts may depend on the thread that entered them
            await _close_aside(self, cancel=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool like `concurrent.futures.Executor.shutdown`: running calls finish.

        Parameters
        ----------
        wait
            Whether to wait until the nodes have ended. Otherwise that happens in the background, and the program does
            not exit before.
        cancel_futures
            Cancel the calls that have not started.
        """
        if (opened := self._last()) is None:
            return
        if cancel_futures:
            opened.withdraw()
        if wait:
            opened.close()
            self._ending = None
        else:
            opened.contexts.close()  # in this thread, since contexts may depend on the thread that entered them
            opened.close_aside()

    # --- use ---

    def download(
        self, pattern: str | os.PathLike[str], to: str | os.PathLike[str], *, overwrite: bool = False
    ) -> list[Path]:
        """Download files that tasks have written, from all nodes that are ready.

        Parameters
        ----------
        pattern
            Which files, as for `glob.glob` with ``recursive=True``: in the tasks' working directory, or an absolute
            path on the nodes. A folder that matches stands for all files in it; those of read-only volumes don't count.
        to
            Local folder for them, created if necessary; ``{node}`` in it stands for the name of the file's node. Under
            it, a file keeps the part of its path that the pattern does not spell out.
        overwrite
            Whether local files may be replaced.

        Returns
        -------
        list of Path
            The local files.

        Raises
        ------
        DownloadFailed
            Nothing matches, two nodes have files of the same name, a file exists here, one changes while it is
            read, a disk is full, or a node is lost. No local file has changed.
        """
        wanted, folder = pool_arguments.download(pattern, to)
        return self._running().download(wanted, folder, overwrite=overwrite)

    def _running(self) -> RunningPool:
        opened = self._open
        if opened is None:
            raise PoolNotActive("this pool is closed; make a new sky.Compute" if self._used else _NOT_ENTERED)
        if opened.pid != os.getpid():
            raise PoolNotActive("this pool belongs to the process that opened it, not to a fork of it: open one here")
        return opened

    @property
    def is_active(self) -> bool:
        """Whether tasks can be submitted now."""
        return self._open is not None and self._open.pid == os.getpid()

    @property
    def dispatcher(self) -> Dispatcher:
        """Where front ends submit tasks."""
        return self._running().dispatcher

    @property
    def total_slots(self) -> int:
        """Number of slots on the nodes that are ready: nodes x concurrency."""
        return self._running().provisioner.slots

    def status(self) -> PoolStatus:
        """Return the pool's state at this moment. May be called from any thread, even a listener's; never blocks.

        Returns
        -------
        PoolStatus
            Nodes with their machines and load, tasks by state and by function, rates, bytes, what machines have cost,
            and how many seconds are left. As text it is a table.

        Raises
        ------
        PoolNotActive
            The pool is not open. After the end of the block it stays open until the nodes have finished their tasks.
        """
        return (_alive(self._open or self._ending) or self._running()).status()

    @property
    def dashboard_link(self) -> str:
        """Address of the live page, for a browser on this machine; starts the page if there was none.

        Raises
        ------
        PoolNotActive
            The pool is not open.
        ConfigError
            The extra ``[dashboard]`` is not installed.
        """
        opened = self._running()
        pool_arguments.dashboard(True)
        self._page = opened.showing.show()
        return self._page.link

    def save_report(self, path: str | os.PathLike[str]) -> Path:
        """Save what the live page shows as a single file that any browser opens offline.

        Parameters
        ----------
        path
            The file, such as ``"run.html"``; replaced if it exists. It contains function names, output and tracebacks.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            The pool has no live page, so nothing was recorded; or that is not the path of a file.
        OSError
            It can't be written.
        """
        target = pool_arguments.report(path)
        if self._page is None:
            raise ConfigError("nothing was recorded for a report: open the pool with sky.Compute(dashboard=True)")
        self._page.save(target)
        return Path(target)

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes that are ready, in order."""
        return self._running().provisioner.nodes


def _alive(opened: RunningPool | None) -> RunningPool | None:
    """The pool, until its last node has ended."""
    return None if opened is None or opened.is_over else opened


def _complete(settings: PoolSettings) -> PoolSettings:
    """Add what plugins change, and which packages nodes install."""
    image = settings.image
    for plugin in settings.plugins:
        image = plugin.transform_image(image, driver_environment=settings.is_local)
    image = pool_arguments.with_rclone(image, settings)
    return replace(settings, image=image, packages=_packages(settings, image))


def _packages(settings: PoolSettings, image: Image) -> PackagePlan | None:
    """Plan what nodes install; None if that is just what the image says, or nothing."""
    if settings.is_local or image.sync == "none":
        return None
    from skyward.core.packages.planner import PackagePlan  # noqa: PLC0415 - 8 MB that a pool on this machine does not need

    return PackagePlan(image)


ComputePool = Compute


async def _close_aside(pool: Compute, *, cancel: bool) -> None:
    """Close a pool in a thread. If the coroutine is cancelled meanwhile, so are the tasks, but it still waits."""
    closing = asyncio.ensure_future(asyncio.to_thread(pool.close, cancel=cancel))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.to_thread(pool.close, cancel=True)
        raise
