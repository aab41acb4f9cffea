"""Gets a pool's nodes, keeps them, and gives them back.

What to order, look at and destroy, the fleet decides (fleet.py); here it is carried out, each provider's call in a
thread, what costs money through `Buyer` (buyer.py). For each machine that the fleet begins one task runs its whole
life: connect, bootstrap where there is a shell (connector.py), keep up the session. What a machine is, only its
provider knows.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from skyward.core.errors import (
    CloudError,
    NoOffer,
    PackagesFailed,
    ProtocolError,
    ProvisioningError,
    SkywardError,
)
from skyward.core.events import Events, Machines, NodeGone, NodeReady, NodeStep, Note
from skyward.core.guard import guarded, watched
from skyward.core.interfaces import Provider, Rental, Trait
from skyward.core.machines import fleet_events as f
from skyward.core.machines import offer_selection
from skyward.core.machines.fleet import Fleet
from skyward.core.nodes.connector import Connector
from skyward.core.nodes.session import Session, SessionHandler
from skyward.core.nodes.timing import Timing, link_patience
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.protocol.messages import Ready, Setup
from skyward.core.spec import Image, Machine, MachineId, Nodes, Offer, Offers, Order

if TYPE_CHECKING:
    from skyward.core.machines.buyer import Buyer
    from skyward.core.nodes.certificates import Authority

__all__ = ["NodeUser", "Plan", "Provisioner"]

_T = TypeVar("_T")
_log = logging.getLogger("skyward.provision")

_MOST_LINES = 8  # refusals that one error lists
_GIVE_UP = 900.0  # seconds for giving everything back; then the ledger, and who reads it, must do
_GIVE_UP_BROKEN = 30.0  # the same where an error in the upkeep may have lost the count
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool wants.

    Attributes
    ----------
    providers
        Asked in order, the next when one has nothing.
    setup
        What each agent is told; the node's name is filled in.
    """

    providers: Sequence[Provider]
    nodes: Nodes
    order: Order
    image: Image
    setup: Setup
    timing: Timing


class NodeUser(SessionHandler, Protocol):
    """Runs tasks on the nodes: the dispatcher. Sessions hand it the nodes' messages directly.

    Called from the event loop; must not block.
    """

    @property
    def answered(self) -> int:
        """How many tasks have succeeded or failed by themselves so far: a sign that the nodes are of use."""
        ...

    def node_up(self, session: Session, slots: int) -> None:
        """A node is ready for tasks."""
        ...

    def node_down(self, name: str, reason: str, *, begun: bool = True) -> None:
        """A node is gone for good. May be repeated; a node that never was up may be named too.

        Parameters
        ----------
        name, reason
            Which node, and why.
        begun
            Whether tasks may have been running there; with False they were only waiting.
        """
        ...

    def hopeless(self, reason: str) -> None:
        """No node is up, and none will come: tasks need not wait any longer."""
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
        Who hears of nodes and machines.
    """

    def __init__(self, plan: Plan, user: NodeUser, events: Events) -> None:
        self._plan = plan
        self._user = user
        self._events = events
        self._calls = ThreadPoolExecutor(16, "skyward-provider")
        self._fleet = self._new_fleet([])
        self._timer: asyncio.TimerHandle | None = None
        self._errands: set[asyncio.Task[None]] = set()  # what was commanded; never cancelled
        self._lives: dict[tuple[int, MachineId], _Life] = {}
        self._sessions: dict[str, Session] = {}
        self._ready: dict[str, int] = {}  # node -> slots
        self._names: list[str] = []  # of all nodes so far, in the order in which they were begun
        self._broken: ProvisioningError | None = None  # the upkeep has failed
        self._first_error: SkywardError | None = None
        self._last_reason: str | None = None  # why the last node was lost
        self._answered = 0  # tasks, when a node was last taken out since nothing went well there
        self._changed = asyncio.Event()
        self._started = False
        self._stopping = False
        self._buyer: Buyer | None = None
        self._waiting = Machines()  # as it was told last
        self._authority: Authority | None = None

    def __repr__(self) -> str:
        return f"<Provisioner {len(self._ready)} ready, {len(self._lives)} alive, of {self._plan.nodes}>"

    @property
    def slots(self) -> int:
        """Slots of the nodes that are ready."""
        return sum(self._ready.values())

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that are ready, in the order of their numbers."""
        return [name for name in self._names if name in self._ready]

    async def start(self) -> None:
        """Get nodes; returns when the least number is ready, while more may still come.

        Raises
        ------
        ProvisioningError, LinkError
            The least number can't be reached any more: the first error that a node met.
        """
        candidates = await self._shop()
        if self._stopping:
            return
        rentals = [cast("Rental", provider) for provider in self._plan.providers if _is_rented(provider)]
        if rentals:
            self._buyer = await self._call(_buyer, self._plan.order.tag, rentals)
        self._fleet = self._new_fleet(candidates)
        self._tell_fleet(f.Tick())
        least = self._plan.nodes.min
        while len(self._ready) < least and not (self._fleet.settled and self._fleet.count < least):
            if self._broken is not None:
                raise self._broken
            self._changed.clear()
            await self._changed.wait()
        if len(self._ready) < least:
            raise self._reason()
        self._started = True

    def _new_fleet(self, candidates: Sequence[f.Candidate]) -> Fleet:
        sources = [_source(provider) for provider in self._plan.providers]
        return Fleet(sources, candidates, self._plan.nodes.max, self._plan.order.tag)

    async def stop(self) -> None:
        """Say goodbye to all nodes and give all machines back; returns when that is done and confirmed."""
        self._stopping = True
        if self._buyer is not None and (count := self._fleet.count):  # it takes a while; who pressed Ctrl-C must see it
            self._events.emit(Note(f"giving back {count} machine(s) of {self._plan.order.tag}"))
        self._tell_fleet(f.Stop())
        await asyncio.gather(*(session.close() for session in self._sessions.values()), return_exceptions=True)
        for life in self._lives.values():
            life.serving.cancel()
        try:
            async with asyncio.timeout(_GIVE_UP if self._broken is None else _GIVE_UP_BROKEN):
                while not self._fleet.done or self._lives:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._tell_left()
        else:
            if self._fleet.given_up:
                self._tell_left()
            else:
                await self._close_buyer()
        finally:
            self._calls.shutdown(wait=False)

    def _tell_left(self) -> None:
        """What may still cost: it stays in the ledger, and the reaper, which nobody dismisses, is for it."""
        tag, price, given_up = self._plan.order.tag, self._fleet.left_price(), self._fleet.given_up
        left = ", ".join(f"{id} at {name}" for name, id in sorted(self._fleet.left())) or "something that is no machine"
        cost = "it may still cost" if price is None else f"it may still cost, about ${price:.4g}/h"
        text = f"could not give back {left}; {cost}. "
        for name, error in given_up:
            text += f"{name} refuses the credentials: {str(error).removeprefix(f'{name}: ')}. "
        text += f"With credentials that may end it: skyward down {tag}. " if given_up else f"Try: skyward down {tag}. "
        text += "A process that stands by tries it too when this program has ended"
        self._events.emit(Note(text, warning=True))

    async def _close_buyer(self) -> None:
        if self._buyer is None:
            return
        self._events.emit(await self._call(self._buyer.close))

    def _reason(self) -> SkywardError:
        """Why too few nodes were had."""
        refusals = self._fleet.refusals
        error = self._first_error or (refusals[0] if refusals else None)
        if error is None or len(refusals) <= 1:
            return error or ProvisioningError("the provider gave no machine")
        texts = list(dict.fromkeys(str(refusal) for refusal in refusals))
        lines = "".join(f"\n  {text}" for text in texts[:_MOST_LINES])
        lines += f"\n  and {len(texts) - _MOST_LINES} more" if len(texts) > _MOST_LINES else ""
        kinds = {type(refusal) for refusal in refusals}
        kind = type(error) if len(kinds) == 1 else ProvisioningError
        whole = kind(f"{self._plan.nodes.min} node(s) can't be had; all that was tried was refused:{lines}")
        whole.__cause__ = error
        return whole

    # --- offers ---

    async def _shop(self) -> list[f.Candidate]:
        """What can be asked for, in the order in which to ask for it."""
        found: list[f.Candidate] = []
        errors: list[SkywardError] = []
        for number, provider in enumerate(self._plan.providers):
            try:
                found += [f.Candidate(number, offer) for offer in await self._offers(provider)]
            except SkywardError as error:
                errors.append(error)
                if len(self._plan.providers) > 1:
                    self._note_refusal(provider, error)
        if not found:
            raise errors[0]
        if self._plan.order.allocation == "cheapest":  # of all providers, not of one after another
            found.sort(key=lambda candidate: _price(candidate.offer))
        return found

    def _note_refusal(self, provider: Provider, error: SkywardError) -> None:
        reason = str(error).removeprefix(f"{provider.name}: ")  # most errors begin so; once is enough
        self._events.emit(Note(f"{provider.name}: {reason}", warning=True))

    async def _offers(self, provider: Provider) -> Sequence[Offer | None]:
        if not _is_rented(provider):
            return [None]  # its machines are what they are
        order = self._plan.order
        offers = await self._call(_mapped, provider.name, _listed, Offer, provider.offers, order.resources)
        for error in offers.refused if isinstance(offers, Offers) else ():
            self._note_refusal(provider, error)
        chosen = offer_selection.select(offers, order.resources, order.allocation)
        if not chosen:
            raise NoOffer(f"{provider.name}: {offer_selection.nearest(offers, order.resources, order.allocation)}")
        return chosen

    # --- the fleet's commands ---

    def _tell_fleet(self, event: f.Event) -> None:
        """Report to the fleet and begin what it commands."""
        loop = asyncio.get_running_loop()
        now = loop.time()  # read once: what falls due between two readings would neither be done nor be waited for
        commands = self._fleet.handle(event, now)
        due = self._fleet.next_tick(now)
        self._tell_orders([command for command in commands if isinstance(command, f.Create)])
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
            else loop.call_at(due, guarded, self._failed, self._tell_fleet, f.Tick())
        )
        self._changed.set()
        if self._started and not self._stopping and self._fleet.settled and not self._fleet.count:
            self._user.hopeless(f"no node is left and none can be had; the last one: {self._last_reason}")

    def _tell_orders(self, commands: Sequence[f.Create]) -> None:
        """What is bought at this moment; where each machine is an order of its own, one line for all that are alike."""
        counts: Counter[tuple[str, str, float | None]] = Counter()
        for command in commands:
            provider, offer = self._plan.providers[command.candidate.source], command.candidate.offer
            if offer is not None:
                counts[provider.name, str(offer), offer.price] += command.count
        for (name, text, price), count in counts.items():
            total = f", ${price * count:.4g}/h in all" if price and count > 1 else ""
            self._events.emit(Note(f"{name}: ordering {count} x {text}{total}"))

    def _carry_out(self, command: f.Command) -> None:
        match command:
            case f.Report(text, warning):
                self._events.emit(Note(text, warning))
            case f.Begin(source, machine):
                self._begin(source, machine)
            case f.Abandon(source, id, reason):
                self._lives[source, id].abandon(reason)
            case f.Create():
                self._errand(self._create(command))
            case f.Poll(source):
                provider = self._plan.providers[source]
                self._errand(
                    self._ask(
                        functools.partial(_listed, Machine, provider.machines),
                        self._plan.order.tag,
                        then=lambda machines: f.Seen(source, machines),
                        other=lambda error: f.NotSeen(source, error),
                        name=provider.name,
                    )
                )
            case f.Destroy(source, ids):
                provider = self._plan.providers[source]
                end: Callable[[Sequence[MachineId]], None] = provider.destroy
                if self._buyer is not None and _is_rented(provider):
                    end = functools.partial(self._buyer.end, provider)
                self._errand(
                    self._ask(
                        end,
                        ids,
                        then=lambda _: f.Destroyed(source, ids),
                        other=lambda error: f.NotDestroyed(source, ids, error),
                        name=provider.name,
                    )
                )
            case f.Clear(source):
                rental = cast("Rental", self._plan.providers[source])
                self._errand(
                    self._ask(
                        rental.clear,
                        self._plan.order.tag,
                        then=lambda _: f.Cleared(source),
                        other=lambda error: f.NotCleared(source, error),
                        name=rental.name,
                    )
                )

    def _errand(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        watched(task, self._failed)

    def _failed(self, error: Exception) -> None:
        """The upkeep itself failed: said; and whoever waits for nodes is told, for it is not known what comes of it."""
        text = f"unexpected error in the upkeep of the nodes: {type(error).__name__}: {error}"
        _log.error("%s", text, exc_info=error)
        self._events.emit(Note(f"{text}; its traceback is in Python's log", warning=True))
        self._broken = ProvisioningError(text)
        self._broken.__cause__ = error
        self._changed.set()
        if self._started and not self._ready:
            self._user.hopeless(text)

    async def _ask(
        self,
        function: Callable[..., _T],
        *args: object,
        then: Callable[[_T], f.Event],
        other: Callable[[SkywardError], f.Event],
        name: str,
    ) -> None:
        """Call a provider and report what came of it."""
        try:
            result = await self._call(_mapped, name, function, *args)
        except SkywardError as error:
            self._tell_fleet(other(error))
        else:
            self._tell_fleet(then(result))

    async def _create(self, command: f.Create) -> None:
        provider, offer = self._plan.providers[command.candidate.source], command.candidate.offer
        order = replace(self._plan.order, count=command.count, name=command.order, offer=offer)
        buy: Callable[[Order], Sequence[Machine]] = provider.create
        if self._buyer is not None and _is_rented(provider):
            buy = functools.partial(self._buyer.buy, provider)
        await self._ask(
            functools.partial(_listed, Machine, buy),
            order,
            then=lambda machines: f.Made(command.order, machines),
            other=lambda error: f.Refused(command.order, error),
            name=provider.name,
        )

    async def _call(self, function: Callable[..., _T], *args: Any) -> _T:
        """In a thread; or here where none can be had, since the interpreter is ending."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._calls, functools.partial(function, *args))
        except RuntimeError:
            return function(*args)
        return await work

    # --- nodes ---

    def _begin(self, source: int, machine: Machine) -> None:
        name = f"node-{len(self._names) + 1}"
        self._names.append(name)
        provider = self._plan.providers[source]
        if self._buyer is not None and _is_rented(provider):
            self._errand(self._call(self._buyer.reached, provider.name, machine, name))
        life = self._lives[source, machine.id] = _Life(asyncio.create_task(self._serve(source, machine, name)))
        if self._stopping:
            life.serving.cancel()
        self._errand(self._live(source, machine, name, life))

    async def _live(self, source: int, machine: Machine, name: str, life: _Life) -> None:
        """A node's whole life; ends with the machine given up, and perhaps another one in its place."""
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
        except Exception as error:  # a gap in a transport's or provider's error map; it must not end the pool's upkeep
            _log.exception("%s: unexpected error", name)
            reason = f"{type(error).__name__}: {error}"
            self._first_error = self._first_error or ProvisioningError(f"{machine.name}: {reason}")
        reason = life.reason or reason
        if not self._started and not self._stopping and self._first_error is None:
            self._first_error = ProvisioningError(f"{machine.name} was lost while the pool started: {reason}")
        was_ready = self._ready.pop(name, None) is not None
        session = self._sessions.pop(name, None)
        del self._lives[source, machine.id]
        self._user.node_down(name, reason or "the pool was closed")
        self._events.emit(NodeGone(name, None if self._stopping else reason))
        # While the pool starts, hosts that exist are not exchanged, nor machines for packages that no other could
        # install either: what is wrong is told at once.
        replace = self._started or (_is_rented(self._plan.providers[source]) and not is_image)
        self._last_reason = reason
        barren = session is not None and session.barren
        if barren and self._user.answered > self._answered:
            self._answered = self._user.answered
            self._tell_fleet(f.Worked())
        self._tell_fleet(f.Lost(source, machine.id, was_ready, replace, barren))
        if reason is not None and not was_ready and not self._stopping:
            more = "" if self._fleet.settled else "; trying another machine"
            self._events.emit(Note(f"{name}: {reason.partition(chr(10))[0]}{more}", warning=True))

    async def _serve(self, source: int, machine: Machine, name: str) -> str | None:
        """From a machine to a session, until that ends; the reason, or None when the pool ended it."""
        provider, patience = self._plan.providers[source], 0.0
        if self._buyer is not None and _is_rented(provider):
            machine, patience = self._buyer.with_keys(machine), cast("Rental", provider).patience
        connector = Connector(
            machine,
            self._plan.image,
            orphan_timeout=self._plan.order.orphan_timeout,
            patience=patience,
            on_step=lambda step: self._events.emit(NodeStep(name, step)),
            on_doubt=lambda: self._tell_fleet(f.Doubt(source)),
        )
        try:
            secret = await connector.prepare()
            here = Trait.DRIVER_ENVIRONMENT in self._plan.providers[source].traits
            setup = self._plan.setup._replace(
                node=name, shares=here and CAN_SHARE, identity=self._identity(machine, name)
            )
            session = Session(
                name,
                connector.open,
                secret,
                setup,
                self._user,
                self._node_ready,
                self._plan.timing,
                connector.stripes,
                functools.partial(self._patience, name),
            )
            self._sessions[name] = session
            limit = asyncio.get_running_loop().call_later(self._plan.timing.ready, self._too_late, session)
            try:
                return await session.run()
            finally:
                limit.cancel()
        finally:
            await connector.close()

    def _patience(self, name: str) -> float:
        others = [self._sessions[other].linked_for for other in self._ready if other != name]
        return link_patience(self._plan.timing, self._plan.order.orphan_timeout, others)

    def _too_late(self, session: Session) -> None:
        """An agent whose slots hang, in an import say, goes on to answer; it is of no use all the same."""
        if session.node not in self._ready:
            session.abandon(f"its workers did not start within {self._plan.timing.ready:g} s")

    def _identity(self, machine: Machine, name: str) -> dict[str, str] | None:
        """What the node is known by to others of the pool, if there may be any that are not on this machine."""
        assert machine.endpoint is not None
        host = machine.endpoint.host
        if self._plan.nodes.max == 1 or host in _LOOPBACK:
            return None  # to send it all from here is cheaper, and no port is opened
        if self._authority is None:
            from skyward.core.nodes.certificates import Authority  # noqa: PLC0415

            self._authority = Authority(self._plan.order.tag)
        return {"authority": self._authority.certificate, "certificate": self._authority.issue(name), "host": host}

    def _node_ready(self, session: Session, message: Ready) -> None:
        """A node's slots have started, or can't start, or can't be restarted any more."""
        was_ready = session.node in self._ready
        if message.error is not None:
            if was_ready:
                self._user.node_down(session.node, message.error, begun=False)
            self._first_error = self._first_error or ProvisioningError(f"{session.node}: {message.error}")
            session.abandon(message.error, barren=was_ready)
        elif was_ready:
            raise ProtocolError("it is ready a second time")
        else:
            self._ready[session.node] = message.slots
            self._tell_fleet(f.Ready())
            self._user.node_up(session, message.slots)
            self._events.emit(NodeReady(session.node, message.slots))


@dataclass(slots=True)
class _Life:
    """A machine from when it has an address: `serving` may be cancelled, the rest of its life may not."""

    serving: asyncio.Task[str | None]
    reason: str | None = None

    def abandon(self, reason: str) -> None:
        """End it: its provider says that the machine has ended."""
        self.reason = reason
        self.serving.cancel()


def _buyer(tag: str, rentals: Sequence[Rental]) -> Buyer:
    """Called in a thread."""
    from skyward.core.machines.buyer import Buyer  # noqa: PLC0415 - a pool that rents nothing does without SQLite and all that

    return Buyer(tag, rentals)


def _is_rented(provider: Provider) -> bool:
    return Trait.RENTED in provider.traits


def _source(provider: Provider) -> f.Source:
    batch = Trait.BATCH in provider.traits
    if not _is_rented(provider):
        return f.Source(provider.name, batch)
    rental = cast("Rental", provider)
    return f.Source(rental.name, batch, True, rental.patience, rental.listing_delay, rental.poll)


def _price(offer: Offer | None) -> float:
    return math.inf if offer is None or offer.price is None else offer.price


def _listed(kind: type[_T], function: Callable[..., Sequence[_T]], *args: object) -> Sequence[_T]:
    """What a provider's call returns, if it is what it should be: all that is done with it relies on that."""
    found: object = function(*args)
    if not isinstance(found, Sequence) or not all(isinstance(item, kind) for item in found):
        raise TypeError(f"it returned {found!r:.100} in the place of a list of {kind.__name__}s")
    return found


def _mapped(name: str, function: Callable[..., _T], *args: object) -> _T:
    """Call a provider; only errors of our tree come out, since others would end the pool's upkeep."""
    try:
        return function(*args)
    except SkywardError:
        raise
    except BaseException as error:  # a gap in the provider's error map, or its exit: what it did is not known
        _log.debug("%s: unexpected error", name, exc_info=True)
        raise CloudError(f"{name}: {type(error).__name__}: {error}") from error
