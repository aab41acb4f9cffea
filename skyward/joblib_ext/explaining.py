"""`sky.explain`: what a call would take and cost on machines for rent, from a few of its tasks. It rents nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skyward.core import pool_arguments
from skyward.core.errors import ConfigError, SkywardError
from skyward.core.interfaces import Provider, Timed, Trait
from skyward.core.machines import estimates, offer_selection
from skyward.core.machines.forecast import Cluster, Forecast, Workload, forecast, in_words, merged
from skyward.core.pool import Compute
from skyward.core.spec import Allocation, Nodes, Offer, Resources, Worker, parse_seconds
from skyward.core.system.machine import core_count
from skyward.core.system.machine import memory as memory_here
from skyward.core.tables import html_table
from skyward.core.visible import in_html
from skyward.joblib_ext.recording import record

__all__ = ["Explanation", "Option", "explain"]

_OFFERS = 3  # of each provider
_START = 100.0  # seconds until a machine is a node, if its provider does not say
_TOGETHER = 8  # processes that run tasks at the same time here, at most
_HERE, _NEAR, _FAR = 1e9, 50e6, 12.5e6  # bytes per second: on this machine, to hosts, to rented machines
_WORTH = 0.6  # share of the time here that it may take elsewhere
_SAVED = {True: 60.0, False: 15.0}  # seconds that must be saved, with rented machines or others


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run the call: some machines, and the forecast for them.

    Attributes
    ----------
    provider, machine
        Names of the provider and of the machine type; the latter is empty where there is nothing to rent.
    spot
        Whether the machines may be preempted.
    rented
        Whether they cost money.
    nodes, slots
        How many nodes, and slots of each.
    forecast
        Times in seconds, the price in US dollars, and what limits.
    """

    provider: str
    machine: str
    spot: bool
    rented: bool
    nodes: int
    slots: int
    forecast: Forecast

    def __str__(self) -> str:
        kind = f"{self.machine}{' spot' if self.spot else ''}"
        return f"{self.provider}, {self.nodes} x {kind or 'host'} with {self.slots} slots"


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """What `sky.explain` has found out. Its repr is a table.

    Attributes
    ----------
    workload
        The tasks: how many, and what was measured of those that were run.
    here
        On this machine, with a slot for each core.
    options
        On the machines that were asked about, the fastest of each provider first.
    problems
        Why a provider has no option.
    """

    workload: Workload
    here: Option
    options: tuple[Option, ...]
    problems: tuple[str, ...] = ()

    @property
    def best(self) -> Option:
        """The fastest way, this machine included."""
        return min((self.here, *self.options), key=lambda option: option.forecast.wall)

    @property
    def worthwhile(self) -> bool:
        """Whether the best way saves enough to be worth the machines."""
        here, there = self.here.forecast.wall, self.best.forecast.wall
        return there < _WORTH * here and here - there > _SAVED[self.best.rented]

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        here = in_words(self.here.forecast.wall)
        fastest = min(self.options, key=lambda option: option.forecast.wall, default=None)
        if self.worthwhile:
            return (
                f"worth it: {self.best}: {in_words(self.best.forecast.wall)}{_cost(self.best)}, instead of {here} here"
            )
        if fastest is None:
            return f"{here} here"
        return (
            f"{here} here: not worth it; the fastest of these, {fastest}, takes {in_words(fastest.forecast.wall)}"
            f"{_cost(fastest)}, of which {in_words(fastest.forecast.start)} until its machines are ready"
        )

    def _head(self) -> str:
        work = self.workload
        seconds = sorted(sample.seconds for sample in work.samples)
        times = f"{in_words(seconds[0])} to {in_words(seconds[-1])}"
        return (
            f"{work.calls:,} calls; {len(seconds)} were run here, in processes of their own: {times}, {work.cpu:.0%} "
            f"of a core, {work.memory / 1e6:,.0f} MB"
        )

    def _repr_html_(self) -> str:
        """How notebooks show it."""
        options = html_table(_HEAD, [_cells(option) for option in (self.here, *self.options)])
        said = "<br>".join(in_html(text) for text in (*self.problems, self.advice))
        return f"<div>{in_html(self._head())}{options}{said}</div>"

    def __repr__(self) -> str:
        lines = [
            self._head(),
            f"{'':44} {'start':>9} {'call':>9} {'total':>9} {'price':>8}  limits",
        ]
        lines += [_row(option) for option in (self.here, *self.options)]
        return "\n".join([*lines, *self.problems, self.advice])


_HEAD = "", "start", "call", "total", "price", "limits"


def _cells(option: Option) -> list[str]:
    there = option.forecast
    price = "?" if there.price is None else f"${there.price:.2f}"
    return [str(option), *map(in_words, (there.start, there.call, there.wall)), price, "; ".join(there.limits)]


def _row(option: Option) -> str:
    what, start, call, wall, price, limits = _cells(option)
    return f"{what:44} {start:>9} {call:>9} {wall:>9} {price:>8}  {limits}".rstrip()


def _cost(option: Option) -> str:
    price = option.forecast.price
    return "" if not option.rented else f" for ${price:.2f}" if price is not None else " for an unknown price"


def explain(
    call: Callable[[], object],
    provider: Provider | str | Sequence[Provider | str] | None = None,
    nodes: int | tuple[int, int] = 1,
    worker: Worker | None = None,
    concurrency: int | None = None,
    *,
    machine: str | None = None,
    accelerator: str | None = None,
    vcpus: int | None = None,
    memory: int | str | None = None,
    allocation: Allocation = "spot-if-available",
    max_price: float | None = None,
    bandwidth: float | None = None,
    seconds: float = 60.0,
) -> Explanation:
    """Estimate how long a call would take on other machines and what it would cost, before anything is rented.

    The call is run in separate processes, with copies of everything it refers to, so your objects do not change. The
    tasks of its first ``Parallel(n_jobs=-1)`` are counted, a few of them are run (up to three, or about twenty short
    ones; as many at once as on a node, up to this machine's number of cores), and the call is stopped. What comes after
    that, such as a search's final fit, is not included; nor are differences between the processors here and there.

    Parameters
    ----------
    call
        A function without arguments: ``lambda: search.fit(X, y)``.
    provider, nodes, worker, concurrency, machine, accelerator, vcpus, memory, allocation, max_price
        As for `Compute`: the pools to compare. For ``nodes=(min, max)``, the maximum counts.
    bandwidth
        Bytes per second from here to the machines; None assumes 12.5 MB/s to rented ones and 50 MB/s to hosts.
    seconds
        How long tasks may run here; the first one is run in any case.

    Returns
    -------
    Explanation
        For each offer: nodes, times, price and bottlenecks; and whether it is worth it. Print it.

    Raises
    ------
    ConfigError
        An argument is wrong, or the call has no tasks for a pool.
    PayloadError
        The call can't be pickled.
    Exception
        Whatever the call, or one of its tasks, raises.
    """
    limit = _checked(call, bandwidth, seconds)
    providers, count = pool_arguments.providers(provider), Nodes.parse(nodes).max
    if worker is not None:
        pool_arguments.check_type(worker, Worker, "worker")
    worker = pool_arguments.either("worker", worker, "concurrency", concurrency, lambda n: Worker(concurrency=n))
    worker = worker or Worker()
    slots = max(worker.slots, 1)
    resources = pool_arguments.with_defaults(Resources(machine, accelerator, vcpus, memory, max_price), worker)
    together = min(slots * (count if _all_here(providers) else 1), core_count(), _TOGETHER)
    workload = _measure(call, count * slots, together, worker.threads or max(1, core_count() // slots), limit)
    options: list[Option] = []
    problems: list[str] = []
    for each in providers:
        try:
            offers = _offers(each, resources, allocation)
            found = [_option(workload, each, offer, count, slots, bandwidth) for offer in offers]
            options += sorted(found, key=lambda option: option.forecast.wall)
        except SkywardError as error:
            problems.append(f"{each.name}: {error}")
    return Explanation(workload, _here(workload), tuple(options), tuple(problems))


def _checked(call: object, bandwidth: float | None, seconds: float) -> float:
    limit = parse_seconds(seconds, "seconds")
    if limit is None or (bandwidth is not None and not bandwidth > 0):
        raise ConfigError(f"seconds={seconds!r}, bandwidth={bandwidth!r}: both must be positive numbers")
    if not callable(call):
        raise ConfigError(f"explain takes a function without arguments, as in lambda: search.fit(X, y), not {call!r}")
    return limit


def _here(workload: Workload) -> Option:
    cores = core_count()
    there = forecast(workload, Cluster(1, cores, cores, memory_here(), 0.0, _HERE, 0.0))
    return Option("here", "this machine", spot=False, rented=False, nodes=1, slots=cores, forecast=there)


def _measure(call: Callable[[], object], slots: int, together: int, threads: int, seconds: float) -> Workload:
    """Let several processes run tasks at the same time, as slots do, since each is slower then."""
    worker = Worker(concurrency=together, threads=threads, attempts=1)
    with Compute(worker=worker, console=False, timeout=None) as pool:
        futures = [pool.submit(record, call, slots, seconds, share, together) for share in range(together)]
        found = [future.result() for future in futures]
    return merged(found)


def _offers(provider: Provider, resources: Resources, allocation: Allocation) -> Sequence[Offer | None]:
    if Trait.RENTED not in provider.traits:
        return [None]
    offers = provider.offers(resources)
    chosen = offer_selection.select(offers, resources, allocation)
    if not chosen:
        raise ConfigError(offer_selection.nearest(offers, resources, allocation))
    return chosen[:_OFFERS]


def _option(
    workload: Workload, provider: Provider, offer: Offer | None, nodes: int, slots: int, bandwidth: float | None
) -> Option:
    is_here = Trait.DRIVER_ENVIRONMENT in provider.traits
    start = provider.usual_start if isinstance(provider, Timed) else _START
    if offer is not None:
        cores: Any = offer.vcpus
        cluster = Cluster(nodes, slots, cores, offer.memory, start, bandwidth or _FAR, offer.price, offer.billing)
        there = forecast(workload, cluster)
        if there.price is not None:
            estimates.keep(estimates.Rented(provider.name, offer.machine, offer.spot), nodes, there.price)
        return Option(provider.name, offer.machine, offer.spot, True, nodes, slots, there)
    cores, memory = (core_count() / nodes, memory_here() // nodes) if is_here else (None, None)
    cluster = Cluster(nodes, slots, cores, memory, start, _HERE if is_here else bandwidth or _NEAR, 0.0)
    return Option(provider.name, "", False, False, nodes, slots, forecast(workload, cluster))


def _all_here(providers: Sequence[Provider]) -> bool:
    return all(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in providers)
