"""Provisions a pool's nodes, replaces those that are lost, and terminates all of them at the end.

What to order, poll and terminate is decided in `fleet` and carried out here. Each call of a provider runs in a thread
(`provider_calls`), those that cost money through a `Buyer`. For each machine that the fleet begins, one task runs the
node's whole life (`node_life`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from skyward.core.errors import (
    BudgetExceeded,
    NodeLost,
    PackagesFailed,
    ProtocolError,
    ProvisioningError,
    SkywardError,
    TaskError,
    VolumeFailed,
)
from skyward.core.events import Events, Machines, NodeBegun, NodeGone, NodeReady, Note
from skyward.core.gpus import describe, described
from skyward.core.guard import guarded, watched
from skyward.core.interfaces import Rental, Trait
from skyward.core.machines import fleet_events as f
from skyward.core.machines.budget import Budget
from skyward.core.machines.candidates import find_candidates
from skyward.core.machines.clocks import Clocks
from skyward.core.machines.fleet import Fleet
from skyward.core.machines.fleet_reports import exhausted_text, left_text, order_texts, why_too_few
from skyward.core.machines.machine_reports import MachineReports
from skyward.core.machines.node_life import Bring, Identities, NodeLife, Shared, nothing
from skyward.core.machines.plan import Plan
from skyward.core.machines.provider_calls import ProviderCalls, checked_list
from skyward.core.nodes import node_reports
from skyward.core.nodes.session import Session, SessionHandler
from skyward.core.nodes.timing import link_patience
from skyward.core.protocol.messages import Ready
from skyward.core.spec import Machine, MachineId, Order

if TYPE_CHECKING:
    from skyward.core.machines.buyer import Buyer
    from skyward.core.nodes.certificates import Authority

__all__ = ["NodeUser", "Provisioner"]

_T = TypeVar("_T")
_log = logging.getLogger("skyward.provision")

_STOP_LIMIT = 900.0  # seconds to terminate everything; what is left then is the ledger's and the reaper's
_STOP_LIMIT_BROKEN = 30.0  # the same after an unexpected error, which may have lost count


class NodeUser(SessionHandler, Protocol):
    """Runs tasks on the nodes: the task runner. Sessions hand it the nodes' messages directly.

    Called from the event loop; must not block.
    """

    @property
    def answered(self) -> int:
        """How many tasks have succeeded or failed by themselves so far: a sign that the nodes work."""
        ...

    def node_up(self, session: Session, slots: int) -> None:
        """A node is ready for tasks."""
        ...

    def node_down(self, name: str, reason: str, *, begun: bool = True) -> None:
        """A node is gone for good. May be repeated, and may name a node that never was up.

        Parameters
        ----------
        name, reason
            Which node, and why.
        begun
            Whether tasks may have been running there; with False they were only waiting.
        """
        ...

    def hopeless(self, reason: str, error: type[TaskError] = NodeLost, *, ending: bool = False) -> None:
        """No node is up, and none will come: tasks need not wait any longer.

        Parameters
        ----------
        reason
            Why.
        error
            What the tasks fail with.
        ending
            Whether nodes may still be up: they will be gone in a moment, and what runs there is stopped.
        """
        ...


class Provisioner:
    """The nodes of one pool. Lives in the event loop.

    Parameters
    ----------
    plan
        What the pool wants.
    user
        Who uses the nodes.
    events
        Gets events about nodes and machines.
    make_buyer
        Makes the `Buyer` of rented machines, in a worker thread.
    make_authority
        Makes the nodes' certificate authority; see `Identities`.
    bring
        Brings what tasks need to a node whose slots have started; see `Shared`.
    clocks
        Clocks in addition to the event loop's.
    """

    def __init__(
        self,
        plan: Plan,
        user: NodeUser,
        events: Events,
        make_buyer: Callable[[str, Sequence[Rental]], Buyer] | None = None,
        make_authority: Callable[[str], Authority] | None = None,
        bring: Bring = nothing,
        clocks: Clocks | None = None,
    ) -> None:
        self._plan = plan
        self._clocks = clocks or Clocks()
        self._make_buyer = make_buyer or _make_buyer
        self._user = user
        self._events = events
        self._calls = ProviderCalls()
        self._fleet = self._new_fleet([])
        self._timer: asyncio.TimerHandle | None = None
        self._errands: set[asyncio.Task[None]] = set()  # commands that are being carried out; never cancelled
        self._lives: dict[tuple[int, MachineId], NodeLife] = {}  # in the order of their nodes' numbers
        self._begun = 0  # nodes so far
        self._broken: ProvisioningError | None = None  # an unexpected error here
        self._first_error: SkywardError | None = None
        self._last_reason: str | None = None  # why the last node was lost
        self._answered = 0  # tasks, when a node was last removed since none succeeded there
        self._changed = asyncio.Event()
        self._started = False
        self._exhausted = ""  # why no further machine will be paid for
        self._is_over = False  # that is so, and those who wait for a node have been told
        self._stopping = False
        self._buyer: Buyer | None = None
        self._waiting = Machines()  # as last reported
        self._slept = self._clocks.asleep()
        self._known_gpus: frozenset[tuple[int, str]] = frozenset()  # slots and GPUs that the user knows of
        self._reports = MachineReports(plan, events, lambda: asyncio.get_running_loop().time())
        identities = Identities(plan.order.tag, plan.nodes.max, make_authority)
        self._shared = Shared(plan, events, self, user, identities, bring=bring)

    def __repr__(self) -> str:
        return f"<Provisioner {len(self.nodes)} ready, {len(self._lives)} alive, of {self._plan.nodes}>"

    @property
    def slots(self) -> int:
        """Slots of the nodes that are ready."""
        return sum(life.slots for life in list(self._lives.values()))  # a copy, made at once: other threads ask

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that are ready, in the order of their numbers."""
        return [life.name for life in list(self._lives.values()) if life.is_ready]  # a copy, as above

    async def start(self) -> None:
        """Provision nodes; returns when the minimum is ready, while more may still come.

        Raises
        ------
        ProvisioningError, LinkError
            The minimum is out of reach: the first error that a node met.
        """
        candidates = await find_candidates(self._plan, self._calls, self._warn)
        if self._stopping:
            return
        if rentals := self._plan.rentals:
            self._buyer = await self._calls.run(self._make_buyer, self._plan.order.tag, rentals)
        self._fleet = self._new_fleet(candidates)
        self._handle(f.Tick())
        wanted = self._plan.nodes.min
        while len(self.nodes) < wanted and not (self._fleet.settled and self._fleet.count < wanted):
            if self._broken is not None:
                raise self._broken
            self._changed.clear()
            await self._changed.wait()
        if len(self.nodes) < wanted:
            raise why_too_few(self._first_error, self._fleet.refusals, wanted)
        self._started = self._fleet.purse.started = True
        self._check_hope()  # a node may be lost, or the money spent, in the moment since the last one came
        self._report_gpus([life for life in self._lives.values() if life.is_ready])

    def _new_fleet(self, candidates: Sequence[f.Candidate]) -> Fleet:
        sources = [_source(self._plan, number) for number in range(len(self._plan.providers))]
        budget = None if self._plan.budget is None else Budget(self._plan.budget, self._plan.nodes.min)
        return Fleet(sources, candidates, self._plan.nodes.max, self._plan.order.tag, budget)

    async def stop(self) -> None:
        """End all nodes and terminate all machines; returns when that is confirmed."""
        self._stopping = True
        if self._buyer is not None and (count := self._fleet.count):  # it takes a while; who pressed Ctrl-C must see it
            self._events.emit(Note(f"terminating {count} machine(s) of {self._plan.order.tag}"))
        self._handle(f.Shutdown())
        sessions = [life.session for life in self._lives.values() if life.session is not None]
        for error in await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True):
            if isinstance(error, Exception):  # a node that hears no goodbye is terminated all the same
                _log.error("a session could not say goodbye", exc_info=error)
        for life in self._lives.values():
            life.serving.cancel()
        try:
            try:
                end = asyncio.get_running_loop().time() + _STOP_LIMIT
                async with asyncio.timeout_at(end) as limit:
                    while not self._fleet.done or self._lives:
                        if self._broken is not None:
                            end = min(end, asyncio.get_running_loop().time() + _STOP_LIMIT_BROKEN)
                            limit.reschedule(end)
                        self._changed.clear()
                        await self._changed.wait()
                unfinished = bool(self._fleet.left().given_up)
            except TimeoutError:
                unfinished = True
            if unfinished:  # nobody dismisses the reaper then
                self._warn(left_text(self._fleet.left(), self._plan.order.tag))
            elif self._buyer is not None:
                self._events.emit(await self._calls.run(self._buyer.close, self._plan.nodes.max))
        finally:
            self._calls.close()

    def _warn(self, text: str) -> None:
        self._events.emit(Note(text, warning=True))

    # --- the fleet's commands ---

    def _handle(self, event: f.Event) -> None:
        """Pass an event to the fleet, and begin what it commands."""
        loop = asyncio.get_running_loop()
        now = loop.time()  # read once: what falls due between two readings would be neither done nor waited for
        self._fleet.purse.slept = self._clocks.asleep() - self._slept
        commands = self._fleet.handle(event, now)
        due = self._fleet.next_tick(now)
        for text in order_texts(commands, self._plan.providers):
            self._events.emit(Note(text))
        for command in commands:
            self._carry_out(command)
        if self._waiting != (waiting := Machines(*self._fleet.waiting)):
            self._waiting = waiting
            self._events.emit(waiting)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            None
            if due is None or self._fleet.done
            else loop.call_at(due, guarded, self._failed, self._handle, f.Tick())
        )
        self._changed.set()
        self._check_hope()

    def _check_hope(self) -> None:
        """Fail the tasks if no node will run them any more."""
        if self._stopping or not self._started or self._is_over:
            return
        if self._exhausted:
            self._is_over = True
            text = exhausted_text(self._exhausted, self._user.answered)
            self._warn(f"{text}; what is left fails with BudgetExceeded")
            self._user.hopeless(text, BudgetExceeded, ending=True)
        elif self._fleet.settled and not self._fleet.count:
            self._user.hopeless(
                f"no node is left and no other can be provisioned; the last one was lost: {self._last_reason}"
            )
        elif self._broken is not None and not self.nodes:  # others may be on their way, but nobody can be sure of it
            self._user.hopeless(f"{self._broken}")

    def _carry_out(self, command: f.Command) -> None:
        match command:
            case f.Report(text, warning):
                self._events.emit(Note(text, warning))
            case f.Exhausted(reason):
                self._exhausted = reason
                self._check_hope()
            case f.Begin(source, machine):
                self._begin(source, machine)
            case f.Abandon(source, id, reason, blameless):
                life = self._lives[source, id]
                if blameless:
                    self._user.node_down(life.name, reason, begun=False)
                life.abandon(reason)
            case f.Create():
                self._errand(self._create(command))
            case f.Poll(source):
                self._errand(self._poll(source))
            case f.Destroy(source, ids):
                self._errand(self._destroy(source, ids))
            case f.Clear(source):
                self._errand(self._clear(source))

    async def _create(self, command: f.Create) -> None:
        source, offer = command.candidate.source, command.candidate.offer
        deadline = None if command.seconds is None else self._clocks.wall() + command.seconds
        order = replace(self._plan.order, count=command.count, name=command.order, offer=offer, deadline=deadline)
        buy: Callable[[Order], Sequence[Machine]] = self._plan.providers[source].create
        if self._buyer is not None and (rental := self._plan.rental(source)) is not None:
            buy = functools.partial(self._buyer.buy, rental)
        self._reports.ordered(command.order, offer)

        def made(machines: Sequence[Machine]) -> f.Made:
            self._reports.made(source, machines)
            return f.Made(command.order, machines)

        await self._ask(
            source,
            functools.partial(checked_list, Machine, buy),
            order,
            then=made,
            otherwise=lambda error: f.Refused(command.order, error),
        )

    async def _poll(self, source: int) -> None:
        await self._ask(
            source,
            functools.partial(checked_list, Machine, self._plan.providers[source].machines),
            self._plan.order.tag,
            then=lambda machines: f.Seen(source, machines),
            otherwise=lambda error: f.NotSeen(source, error),
        )

    async def _destroy(self, source: int, ids: Sequence[MachineId]) -> None:
        end: Callable[[Sequence[MachineId]], None] = self._plan.providers[source].destroy
        if self._buyer is not None and (rental := self._plan.rental(source)) is not None:
            end = functools.partial(self._buyer.end, rental)

        def ended(_: None) -> f.Destroyed:
            self._reports.ended(source, ids)
            return f.Destroyed(source, ids)

        await self._ask(
            source,
            end,
            ids,
            then=ended,
            otherwise=lambda error: f.NotDestroyed(source, ids, error),
        )

    async def _clear(self, source: int) -> None:
        rental = self._plan.rental(source)
        assert rental is not None
        await self._ask(
            source,
            rental.clear,
            self._plan.order.tag,
            then=lambda _: f.Cleared(source),
            otherwise=lambda error: f.NotCleared(source, error),
        )

    async def _ask(
        self,
        source: int,
        function: Callable[..., _T],
        *args: object,
        then: Callable[[_T], f.Event],
        otherwise: Callable[[SkywardError], f.Event],
    ) -> None:
        """Call a provider, and pass to the fleet what came of it."""
        try:
            result = await self._calls.ask(self._plan.providers[source].name, function, *args)
        except SkywardError as error:
            self._handle(otherwise(error))
        else:
            self._handle(then(result))

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        watched(task, self._failed)

    def _failed(self, error: Exception) -> None:
        """Report an unexpected error of our own; whoever waits for nodes stops waiting, as the count may be lost."""
        text = f"unexpected error while managing the nodes: {type(error).__name__}: {error}"
        _log.error("%s", text, exc_info=error)
        self._warn(f"{text}; the traceback is in Python's log")
        self._broken = ProvisioningError(text)
        self._broken.__cause__ = error
        self._changed.set()
        self._check_hope()

    # --- nodes ---

    def _begin(self, source: int, machine: Machine) -> None:
        self._begun += 1
        name, rental = f"node-{self._begun}", self._plan.rental(source)
        buyer = self._buyer if rental is not None else None
        if buyer is not None:
            self._errand(self._calls.run(buyer.reached, self._plan.providers[source].name, machine, name))
        self._reports.made(source, [machine])
        self._events.emit(NodeBegun(name, self._reports.info(source, machine)))
        life = self._lives[source, machine.id] = NodeLife(name, source, machine, self._shared, buyer)
        if self._stopping:
            life.serving.cancel()
        self._errand(self._follow(life))

    async def _follow(self, life: NodeLife) -> None:
        """Wait until a node's life ends, and do what follows from it."""
        reason: str | None = None
        is_image = False
        try:
            reason = await life.serving
        except asyncio.CancelledError:
            if not life.serving.cancelled():  # the loop itself is ending
                raise
        except SkywardError as error:
            reason, is_image = f"{error}", isinstance(error, PackagesFailed)
            self._first_error = self._first_error or error
        except Exception as error:  # a gap in a transport's or provider's error map, which must not end the pool
            _log.exception("%s: unexpected error", life.name)
            reason = f"{type(error).__name__}: {error}"
            self._first_error = self._first_error or ProvisioningError(f"{life.machine.name}: {reason}")
        if (failure := life.error) is not None:
            self._first_error = self._first_error or failure
            is_image = isinstance(failure, VolumeFailed) and failure.everywhere
        self._ended(life, life.reason or reason, is_image)

    def _ended(self, life: NodeLife, reason: str | None, is_image: bool) -> None:
        """Forget a node, and perhaps have it replaced. `is_image`: no node could get its packages or folders."""
        machine = life.machine
        if not self._started and not self._stopping and self._first_error is None:
            self._first_error = ProvisioningError(f"{machine.name} was lost while the pool started: {reason}")
        del self._lives[life.source, machine.id]
        self._user.node_down(life.name, reason or "the pool was closed")
        self._events.emit(NodeGone(life.name, None if self._stopping else reason))
        # While the pool starts, existing hosts are not replaced, nor machines whose packages or folders no other could
        # get either: the user learns at once what is wrong.
        wants_another = self._started or (self._plan.rental(life.source) is not None and not is_image)
        self._last_reason = reason
        barren = life.session is not None and life.session.barren
        if barren and self._user.answered > self._answered:
            self._answered = self._user.answered
            self._handle(f.Worked())
        self._handle(f.Lost(life.source, machine.id, life.is_ready, wants_another, barren))
        if reason is not None and not life.is_ready and not self._stopping:
            more = "" if self._fleet.settled else "; trying another machine"
            self._warn(f"{life.name}: {reason.partition(chr(10))[0]}{more}")

    def node_ready(self, life: NodeLife, message: Ready) -> None:
        """See `LifeListener.node_ready`."""
        session = life.session
        assert session is not None
        if message.error is not None:
            if life.is_ready:
                self._user.node_down(life.name, message.error, begun=False)
            self._first_error = self._first_error or ProvisioningError(f"{life.name}: {message.error}")
            session.abandon(message.error, barren=life.is_ready)
        elif life.is_ready:
            raise ProtocolError("it reports a second time that it is ready")
        else:
            life.is_ready, life.slots = True, message.slots
            self._handle(f.CameUp())
            self._user.node_up(session, message.slots)
            info, known = self._reports.info(life.source, life.machine), node_reports.machine(session.facts)
            self._events.emit(NodeReady(life.name, message.slots, session.gpus, info, *known))
            if self._started:
                self._report_gpus([life])

    def _report_gpus(self, lives: Sequence[NodeLife]) -> None:
        """Tell the user which GPUs these nodes have, unless earlier nodes have the same."""
        found = [(life.name, life.slots, life.session.gpus) for life in lives if life.session is not None]
        known = self._known_gpus
        self._known_gpus = known | {(slots, described(gpus)) for _, slots, gpus in found}
        if new := [node for node in found if (node[1], described(node[2])) not in known and node[2]]:
            self._events.emit(Note(describe(new, self._plan.setup.gpus)))

    def node_doubted(self, life: NodeLife) -> None:
        """See `LifeListener.node_doubted`."""
        self._handle(f.Doubt(life.source))

    def link_patience(self, life: NodeLife) -> float:
        """See `LifeListener.link_patience`."""
        others = [
            other.session.linked_for
            for other in self._lives.values()
            if other.is_ready and other is not life and other.session is not None
        ]
        return link_patience(self._plan.timing, self._plan.order.orphan_timeout, others)


def _make_buyer(tag: str, rentals: Sequence[Rental]) -> Buyer:
    from skyward.core.machines.buyer import Buyer  # noqa: PLC0415 - a pool that rents nothing does without SQLite

    return Buyer(tag, rentals)


def _source(plan: Plan, number: int) -> f.Source:
    provider, rental = plan.providers[number], plan.rental(number)
    batch = Trait.BATCH in provider.traits
    if rental is None:
        return f.Source(provider.name, batch)
    return f.Source(rental.name, batch, True, rental.patience, rental.listing_delay, rental.poll)
