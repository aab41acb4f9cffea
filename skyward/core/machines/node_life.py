"""One machine as a node: connects to it, prepares it, and keeps up the session until that ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from skyward.core.errors import NodeLost, ProtocolError, ProvisioningError, SkywardError
from skyward.core.events import Events, NodeStep, Note
from skyward.core.interfaces import Trait
from skyward.core.machines.plan import Plan
from skyward.core.nodes.connector import Connector
from skyward.core.nodes.session import Session, SessionHandler
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.protocol.messages import Ready
from skyward.core.spec import Machine
from skyward.core.whoami import Seats

if TYPE_CHECKING:
    from skyward.core.machines.buyer import Buyer
    from skyward.core.nodes.certificates import Authority

__all__ = ["Bring", "Identities", "LifeListener", "NodeLife", "Shared", "nothing"]

_log = logging.getLogger("skyward.provision")


class LifeListener(Protocol):
    """Receives news of the nodes' lives: the provisioner. Called from the event loop; must not block."""

    def node_ready(self, life: NodeLife, message: Ready) -> None:
        """Slots have started, or can't start, or can no longer be restarted."""
        ...

    def node_doubted(self, life: NodeLife) -> None:
        """A link broke: the provider may know what has become of the machine."""
        ...

    def link_patience(self, life: NodeLife) -> float:
        """Seconds for which a node may be without a link."""
        ...


class Identities:
    """Certificates by which the nodes of a pool know each other.

    Parameters
    ----------
    tag
        The pool's.
    max_nodes
        How many nodes the pool may have.
    make_authority
        Makes the certificate authority of a pool, given its tag; None for `certificates.Authority`.
    """

    def __init__(self, tag: str, max_nodes: int, make_authority: Callable[[str], Authority] | None = None) -> None:
        self._tag = tag
        self._max_nodes = max_nodes
        self._make_authority = make_authority or _make_authority
        self._authority: Authority | None = None

    def of(self, name: str, machine: Machine) -> dict[str, str] | None:
        """A node's identity; None if no other node can be elsewhere, and so need not connect to it."""
        assert machine.endpoint is not None
        if self._max_nodes == 1 or machine.endpoint.is_loopback:
            return None  # the driver sends everything itself, which costs less, and no port is opened
        if self._authority is None:
            self._authority = self._make_authority(self._tag)
        authority, host = self._authority, machine.endpoint.host
        return {"authority": authority.certificate, "certificate": authority.issue(name), "host": host}


def _make_authority(tag: str) -> Authority:
    from skyward.core.nodes.certificates import Authority  # noqa: PLC0415 - most pools need none

    return Authority(tag)


Bring: TypeAlias = Callable[[Session, Callable[[str], object]], "Callable[[], Awaitable[None]] | None"]
"""Returns what brings to a node what tasks need, given its session and a callback for its progress in words, or None.

That raises `VolumeFailed`, or `NodeLost` if the node was lost meanwhile.
"""


def nothing(_: Session, __: Callable[[str], object]) -> None:
    """Tasks need nothing else on a node."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all nodes of a pool have in common.

    Attributes
    ----------
    plan
        What the pool wants.
    events
        Gets events about the nodes' progress.
    listener
        See `LifeListener`.
    handler
        Receives the nodes' messages.
    identities
        The pool's.
    seats
        Numbers of the nodes on this machine, among which its GPUs are divided.
    bring
        Brings what tasks need to a node whose slots have started.
    """

    plan: Plan
    events: Events
    listener: LifeListener
    handler: SessionHandler
    identities: Identities
    seats: Seats = field(default_factory=Seats)
    bring: Bring = nothing


class NodeLife:
    """A machine from when it has an address until its session ends. Lives in the event loop.

    Parameters
    ----------
    name
        The node's.
    source, machine
        Number of the provider, and its machine.
    shared
        What it has in common with the pool's other nodes.
    buyer
        Has the machine's keys; None where the machine is not rented.

    Attributes
    ----------
    session
        Once the machine is prepared.
    is_ready, slots
        Whether the slots have started, and how many there are.
    reason
        Why it was abandoned.
    """

    def __init__(self, name: str, source: int, machine: Machine, shared: Shared, buyer: Buyer | None) -> None:
        self.name = name
        self.source = source
        self.machine = machine
        self.session: Session | None = None
        self.has_slots = False  # they have started, and wait perhaps for what tasks need
        self.is_ready, self.slots = False, 0
        self.error: SkywardError | None = None  # why it could not get what tasks need
        self._bringing: asyncio.Task[None] | None = None
        self.reason: str | None = None
        self._shared = shared
        self._buyer = buyer
        self.serving = asyncio.create_task(self._serve())
        """Returns why the node was lost, or None when the pool ended it. May be cancelled."""

    def __repr__(self) -> str:
        return f"<NodeLife {self.name} on {self.machine.name}: {self.session or 'being prepared'}>"

    def abandon(self, reason: str) -> None:
        """End it: its provider says that the machine has ended."""
        self.reason = reason
        self.serving.cancel()

    async def _serve(self) -> str | None:
        plan, machine, patience = self._shared.plan, self.machine, 0.0
        rental = plan.rental(self.source)
        if self._buyer is not None and rental is not None:
            machine, patience = self._buyer.with_keys(machine), rental.patience
        here = Trait.DRIVER_ENVIRONMENT in plan.providers[self.source].traits
        seat = self._shared.seats.take() if here else 0
        connector = Connector(
            machine,
            plan.image,
            plan.packages,
            orphan_timeout=plan.order.orphan_timeout,
            patience=patience,
            on_step=lambda step: self._shared.events.emit(NodeStep(self.name, step)),
            on_warning=lambda text: self._shared.events.emit(Note(text, warning=True)),
            on_doubt=lambda: self._shared.listener.node_doubted(self),
        )
        try:
            secret = await connector.prepare()
            part = [seat - 1, plan.nodes.max] if here else [0, 1]
            self.session = self._make_session(connector, secret, here, part)
            self.session.supply = connector.supply
            limit = asyncio.get_running_loop().call_later(plan.timing.ready, self._too_late, self.session)
            try:
                return await self.session.run()
            finally:
                limit.cancel()
        finally:
            if self._bringing is not None:
                self._bringing.cancel()
            if here:
                self._shared.seats.release(seat)
            try:
                if self.session is None or not self.session.facts:
                    await connector.end_agent()
            finally:
                await connector.close()

    def _make_session(self, connector: Connector, secret: bytes, here: bool, part: list[int]) -> Session:
        plan, listener = self._shared.plan, self._shared.listener
        identity = self._shared.identities.of(self.name, self.machine)
        return Session(
            self.name,
            connector.open,
            secret,
            plan.setup._replace(node=self.name, shares=here and CAN_SHARE, identity=identity, part=part),
            self._shared.handler,
            self._slots_started,
            plan.timing,
            connector.stripes,
            lambda: listener.link_patience(self),
        )

    def _slots_started(self, session: Session, message: Ready) -> None:
        """Bring what tasks need, and then report that the node is ready; errors are reported at once."""
        listener = self._shared.listener
        if message.error is None and self.has_slots:
            raise ProtocolError("it reports a second time that it is ready")
        self.has_slots = self.has_slots or message.error is None
        work = None
        if message.error is None:
            work = self._shared.bring(session, lambda step: self._shared.events.emit(NodeStep(self.name, step)))
        if work is None:
            listener.node_ready(self, message)
        else:
            self._bringing = asyncio.create_task(self._bring(session, work, message))

    async def _bring(self, session: Session, work: Callable[[], Awaitable[None]], message: Ready) -> None:
        try:
            await work()
            self._shared.listener.node_ready(self, message)
        except NodeLost:
            return  # its session has ended, which says more
        except Exception as error:
            if isinstance(error, SkywardError):
                self.error = error
            else:
                _log.exception("%s: unexpected error", self.name)
                self.error = ProvisioningError(f"{self.name}: {type(error).__name__}: {error}")
            session.abandon(str(self.error))

    def _too_late(self, session: Session) -> None:
        """Give up an agent whose slots hang, in an import say: it keeps answering, but is of no use."""
        if not self.has_slots:
            session.abandon(f"its workers did not start within {self._shared.plan.timing.ready:g} s")
