"""What a pool asks of its `Provisioner`, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from skyward.core.image import Image
from skyward.core.interfaces import Provider, Rental, Trait
from skyward.core.nodes.timing import Timing
from skyward.core.packages.lists import Lack, PackageLists
from skyward.core.protocol.messages import Setup
from skyward.core.spec import Nodes, Order

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool wants.

    Attributes
    ----------
    providers
        Tried in order, until one has offers.
    nodes
        How many.
    order
        What each order has in common: the pool's tag, the resources, which offers to take.
    image
        What each node's environment holds.
    setup
        What each agent is sent first; the node's name is filled in.
    timing
        Of the sessions.
    packages
        What nodes install; None for what the image says.
    budget
        US dollars that the pool may cost; None for no limit.
    lack
        Returns what of it machines of an architecture can't have, if anything; it may take seconds. None: not known.
    """

    providers: Sequence[Provider]
    nodes: Nodes
    order: Order
    image: Image
    setup: Setup
    timing: Timing
    packages: PackageLists | None = None
    budget: float | None = None
    lack: Callable[[str], Lack | None] | None = None

    @property
    def rentals(self) -> list[Rental]:
        """The providers whose machines cost money."""
        return [rental for source in range(len(self.providers)) if (rental := self.rental(source)) is not None]

    def rental(self, source: int) -> Rental | None:
        """The provider of this number, if its machines cost money."""
        provider = self.providers[source]
        return cast("Rental", provider) if Trait.RENTED in provider.traits else None
