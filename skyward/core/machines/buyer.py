"""Wraps purchases, so that everything bought is on record, and nothing is kept without an owner."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

import cloudpickle

from skyward.core.errors import CloudError, ProvisioningError, SkywardError
from skyward.core.events import Note
from skyward.core.interfaces import Provider, Rental
from skyward.core.machines import reaper
from skyward.core.machines.estimates import Rented, estimated
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import KeyPair, Machine, MachineId, Order

__all__ = ["Buyer"]


class Buyer:
    """The ledger, the pool's SSH key and the reaper that stands by. Made and used in worker threads.

    Parameters
    ----------
    tag
        The pool's.
    rentals
        Its providers that cost money.

    Raises
    ------
    ConfigError, ProvisioningError
        The ledger can't be written, or the reaper did not start; nothing was bought.
    """

    def __init__(self, tag: str, rentals: Sequence[Rental]) -> None:
        self._tag = tag
        self.ledger = Ledger()
        self._key = make_key(self._tag)
        settings = [(rental.name, rental.settings()) for rental in rentals]
        pickled = cloudpickle.dumps(rentals)
        self._key_path = self.ledger.open_pool(self._tag, settings, self._key)
        self._host_keys: dict[str, KeyPair] = {}
        try:
            self._reaper = reaper.start(self._tag, self.ledger.folder, pickled)
        except BaseException:
            self.ledger.close_pool(self._tag)  # nothing was bought
            raise

    def __repr__(self) -> str:
        return f"<Buyer of {self._tag}>"

    def buy(self, provider: Provider, order: Order) -> Sequence[Machine]:
        """Create machines. The intent is on disk before, and the ids right after."""
        key = self._host_keys[order.name] = make_key(order.name)
        order = replace(order, host_key=key, user_key=self._key.public)
        self.ledger.intend(provider.name, order)
        try:
            machines = provider.create(order)
        except SkywardError as error:
            if not isinstance(error, CloudError):
                self.ledger.refuse(order.name)
            raise
        self.ledger.made(provider.name, machines)
        return machines

    def end(self, provider: Provider, ids: Sequence[MachineId]) -> None:
        """Terminate machines, which cost nothing from here on."""
        provider.destroy(ids)
        with contextlib.suppress(sqlite3.Error):  # only the reported cost would be too high
            self.ledger.ended(provider.name, ids)

    def with_keys(self, machine: Machine) -> Machine:
        """Add to a machine what it takes to log in, and the one host key that it may show."""
        assert machine.endpoint is not None
        key = self._host_keys.get(machine.order)
        if key is None:
            raise ProvisioningError(f"{machine.name} ({machine.id}) was not ordered by this pool: {machine.order!r}")
        # Nothing of the user's own configuration applies to a machine that did not exist a minute ago.
        options = {"host_key": key.public, "keys": [str(self._key_path)], "config": [], "jump": "none"}
        return replace(machine, endpoint=replace(machine.endpoint, options={**machine.endpoint.options, **options}))

    def reached(self, provider: str, machine: Machine, node: str) -> None:
        """Record that a machine has an address, and its node's name.

        Parameters
        ----------
        provider, machine
            Name of the provider, and its machine.
        node
            Name in the pool.
        """
        with contextlib.suppress(sqlite3.Error):  # only `skyward ssh` would miss it
            self.ledger.reached(provider, machine, node)

    def close(self, nodes: int) -> Note:
        """Close the ledger and dismiss the reaper, once all machines are terminated; returns what they cost.

        Parameters
        ----------
        nodes
            How many the pool wanted, which is what `sky.explain` was asked about if it was.
        """
        try:
            return Note(self._close(nodes))
        except (OSError, sqlite3.Error) as error:  # it must not hide the block's own error
            path, tag = self.ledger.path, self._tag
            text = f"all machines are terminated, but {path} can't be written: {error}. "
            text += f"It still lists {tag}: skyward down {tag}"
            return Note(text, warning=True)

    def _close(self, nodes: int) -> str:
        try:
            self.ledger.close_pool(self._tag)
        finally:
            reaper.dismiss(self._reaper)
        entries = self.ledger.machines(self._tag)
        costs = [entry.cost(time.time()) for entry in entries]
        known = sum(cost for cost in costs if cost is not None)
        unknown = sum(cost is None for cost in costs)
        more = f", and {unknown} of unknown price" if unknown else ""
        expected = estimated((Rented(each.provider, each.machine, each.spot) for each in entries), nodes)
        more += f" (${expected:.4f} estimated)" if expected is not None else ""
        return f"0 machines left of {len(entries)}, ${known:.4f} spent{more}"  # each provider was asked by the tag
