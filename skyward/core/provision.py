"""Gets a pool's nodes, keeps them, and gives them back.

For each machine one task runs its whole life: connect, bootstrap where there is a shell, keep up the session, and, when
the node is lost, give the machine back and ask for another. What a machine is, only its provider knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from skyward.core import registry
from skyward.core.bootstrap import bootstrap
from skyward.core.dispatch import Dispatcher
from skyward.core.errors import BootstrapFailed, LinkError, ProvisioningError, SkywardError
from skyward.core.events import Events, NodeGone, NodeReady, NodeStep, Note
from skyward.core.interfaces import Channel, Link, Provider, Transport
from skyward.core.messages import Message, Ready, Setup
from skyward.core.session import Session, Timing
from skyward.core.spec import Image, Machine, Nodes, Order
from skyward.core.wire import Filled

__all__ = ["Plan", "Provisioner"]

_log = logging.getLogger("skyward.provision")

_CONNECT = 30.0  # seconds for one connection
_TRIES = 3  # machines in a row that may fail to come up before no more are asked for
_PAUSE = 2.0  # seconds before the next try, times the number of failures so far


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


class Provisioner:
    """The nodes of one pool. Lives in the event loop."""

    def __init__(self, plan: Plan, dispatcher: Dispatcher, events: Events) -> None:
        self._plan = plan
        self._dispatcher = dispatcher
        self._events = events
        self._lives: set[asyncio.Task[None]] = set()
        self._orders: set[asyncio.Task[int]] = set()
        # The part of a life that may be cancelled. The life itself never is: it ends with its machine given back.
        self._serving: set[asyncio.Task[str | None]] = set()
        self._sessions: dict[str, Session] = {}
        self._ready: dict[str, int] = {}  # node -> slots
        self._names: list[str] = []  # of all nodes so far, in the order in which they were asked for
        self._failed_in_a_row = 0
        self._first_error: SkywardError | None = None
        self._changed = asyncio.Event()
        self._started = False
        self._stopping = False
        self._closing = asyncio.Event()  # set with _stopping, for who waits

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
        """Get nodes; returns when all that were wanted are ready, or the least number and no more will come.

        Raises
        ------
        ProvisioningError, LinkError
            The least number can't be reached any more: the first error that a node met.
        """
        await self._acquire(self._plan.nodes.most)
        while len(self._ready) < len(self._lives) >= self._plan.nodes.least:
            self._changed.clear()
            await self._changed.wait()
        if len(self._ready) < self._plan.nodes.least:
            raise self._first_error or ProvisioningError("the provider gave no machine")
        self._started = True

    async def stop(self) -> None:
        """Say goodbye to all nodes and give all machines back; returns when that is done."""
        self._stopping = True
        self._closing.set()
        if self._orders:  # machines that are being made must be known before they can be given back
            await asyncio.wait(self._orders)
        await asyncio.gather(*(session.close() for session in self._sessions.values()), return_exceptions=True)
        for serving in self._serving:
            serving.cancel()
        if self._lives:
            await asyncio.wait(self._lives)

    # --- machines ---

    async def _acquire(self, count: int) -> None:
        """Ask for so many machines, of one provider after another, and begin the life of those that come."""
        refusals: list[SkywardError] = []
        for provider in self._plan.providers:
            while count > 0 and not self._stopping:
                order = asyncio.create_task(self._order(provider, count))
                self._orders.add(order)
                order.add_done_callback(self._orders.discard)
                try:
                    # Shielded: an interrupt must not lose machines that are being made at this moment.
                    got = await asyncio.shield(order)
                except SkywardError as error:
                    refusals.append(error)
                    break
                if not got:
                    break
                count -= got
        if count > 0 and refusals:
            self._first_error = self._first_error or refusals[0]
            for refusal in refusals:
                self._events.emit(Note(f"{count} node(s) not had: {refusal}"))

    async def _order(self, provider: Provider, count: int) -> int:
        """Have machines made, and begin their lives; how many."""
        try:
            machines = await asyncio.to_thread(provider.create, replace(self._plan.order, count=count))
        except SkywardError:
            raise
        except Exception as error:  # a gap in the provider's error map; it must not end the pool's upkeep
            raise ProvisioningError(f"{provider.name}: {type(error).__name__}: {error}") from error
        for machine in machines:
            self._begin(provider, machine)
        return len(machines)

    def _begin(self, provider: Provider, machine: Machine) -> None:
        name = f"node-{len(self._names) + 1}"
        self._names.append(name)
        self._lives.add(asyncio.create_task(self._live(provider, machine, name), name=f"skyward-{name}"))

    async def _live(self, provider: Provider, machine: Machine, name: str) -> None:
        """A node's whole life; ends with the machine given back, and perhaps another one in its place."""
        reason: str | None = "the pool was closed"
        serving = asyncio.create_task(self._serve(machine, name))
        self._serving.add(serving)
        if self._stopping:
            serving.cancel()
        try:
            reason = await serving
        except asyncio.CancelledError:
            if not serving.cancelled():  # the loop itself is ending
                raise
        except SkywardError as error:
            reason = f"{error}"
            self._first_error = self._first_error or error
        except Exception as error:  # a gap in a transport's or provider's error map; it must not end the pool's upkeep
            _log.exception("%s: unexpected error", name)
            reason = f"{type(error).__name__}: {error}"
            self._first_error = self._first_error or ProvisioningError(f"{machine.name}: {reason}")
        finally:
            self._serving.discard(serving)
            if not self._started and not self._first_error:
                self._first_error = ProvisioningError(f"{machine.name} was lost while the pool started: {reason}")
            was_ready = self._ready.pop(name, None) is not None
            self._sessions.pop(name, None)
            self._dispatcher.node_down(name, reason or "it ended")
            await self._give_back(provider, machine)
            self._events.emit(NodeGone(name, None if self._stopping else reason))
            if self._started and not self._stopping:
                await self._replace(was_ready)
            task = asyncio.current_task()
            assert task is not None
            self._lives.discard(task)
            if self._started and not self._lives and not self._stopping:
                self._dispatcher.hopeless(f"no node is left and none can be had; the last one: {reason}")
            self._changed.set()

    async def _replace(self, was_ready: bool) -> None:
        """Ask for another machine, a little later each time that one fails to come up."""
        self._failed_in_a_row = 0 if was_ready else self._failed_in_a_row + 1
        if self._failed_in_a_row < _TRIES:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _PAUSE * self._failed_in_a_row)
            await self._acquire(1)

    async def _give_back(self, provider: Provider, machine: Machine) -> None:
        try:
            await asyncio.shield(_destroy(provider, machine))
        except Exception as error:  # whatever it is: the pool's upkeep goes on
            self._events.emit(Note(f"{machine.name} ({machine.id}) could not be given back: {error}", warning=True))

    # --- one node ---

    async def _serve(self, machine: Machine, name: str) -> str | None:
        """From a machine to a session, until that ends; the reason, or None when the pool ended it."""
        connector = _Connector(machine, self._plan, lambda step: self._events.emit(NodeStep(name, step)))
        try:
            secret = await connector.prepare()
            setup = self._plan.setup._replace(node=name)
            session = Session(name, connector.open, secret, setup, self, self._plan.timing)
            self._sessions[name] = session
            return await session.run()
        finally:
            await connector.close()

    def received(self, session: Session, message: Message, buffers: list[Filled]) -> None:
        """Hear a session: that it is ready is ours to know, all else the dispatcher's."""
        if not isinstance(message, Ready):
            self._dispatcher.received(session, message, buffers)
        elif message.error is not None:
            self._first_error = self._first_error or ProvisioningError(f"{session.node}: {message.error}")
            session.abandon(message.error)
        else:
            self._ready[session.node] = message.slots
            self._failed_in_a_row = 0
            self._dispatcher.node_up(session, message.slots)
            self._events.emit(NodeReady(session.node, message.slots))
            self._changed.set()


async def _destroy(provider: Provider, machine: Machine) -> None:
    """In a thread; or here where none can be had, since the interpreter is ending."""
    try:
        work = asyncio.get_running_loop().run_in_executor(None, provider.destroy, [machine.id])
    except RuntimeError:
        provider.destroy([machine.id])
    else:
        await work


class _Connector:
    """Makes links to one machine, as often as needed, and channels to its agent."""

    def __init__(self, machine: Machine, plan: Plan, on_step: Callable[[str], None]) -> None:
        if machine.endpoint is None:
            raise ProvisioningError(f"{machine.name} ({machine.id}) has no address")
        self._endpoint = machine.endpoint
        self._plan = plan
        self._address = machine.agent
        self._secret = machine.secret
        self._on_step = on_step
        self._transport: Transport = registry.load(registry.TRANSPORTS, self._endpoint.transport)()
        self._link: Link | None = None
        self._used = False

    async def prepare(self) -> bytes:
        """Connect, and bring up an agent where none runs yet; the secret to prove to it."""
        self._on_step(f"connecting to {self._endpoint}")
        self._link = await self._transport.connect(self._endpoint, _CONNECT)
        if self._address is None:
            if self._link.shell is None:
                raise ProvisioningError(f"{self._endpoint} has neither an agent nor a shell to start one")
            try:
                agent = await bootstrap(
                    self._link.shell,
                    self._plan.image,
                    orphan_timeout=self._plan.order.orphan_timeout,
                    on_step=self._on_step,
                )
            except (BootstrapFailed, LinkError, TimeoutError) as error:
                kind = type(error) if isinstance(error, SkywardError) else BootstrapFailed
                raise kind(f"{self._endpoint}: {error}") from error
            self._address, self._secret = agent.address, agent.secret
        return self._secret

    async def open(self) -> Channel:
        """A channel to the agent: the first over the link that is there, each later one over a new link."""
        assert self._address is not None
        if self._used:
            await self.close()
        if self._link is None:
            self._link = await self._transport.connect(self._endpoint, _CONNECT)
        self._used = True
        return await self._link.open_channel(self._address)

    async def close(self) -> None:
        """End the link."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()
