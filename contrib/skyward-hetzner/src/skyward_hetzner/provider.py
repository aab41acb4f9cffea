"""Hetzner Cloud as a provider: implements what skyward needs of a cloud with `skyward_hetzner.driver`.

It uses what skyward makes public for providers: `skyward.providers.base` and `first_boot`, and from `skyward.core` the
values, errors and contracts.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from libcloud.compute.base import KeyPair, Node
from libcloud.compute.types import NodeState
from skyward.core.billing import Billing
from skyward.core.errors import (
    AuthFailed,
    CloudError,
    ConfigError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    QuotaExceeded,
    SkywardError,
)
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources
from skyward.providers import first_boot
from skyward.providers.base import SECRET, Check, CloudProvider

from skyward_hetzner.driver import API, HetznerError, HetznerNodeDriver

__all__ = ["USD_PER_EUR", "Hetzner"]

USD_PER_EUR = 1.16
"""US dollars per euro: about the European Central Bank's reference rate of November 2025."""

_ADDRESS = 0.001  # per hour of a public IPv4 address, gross, in the currency of all prices
_POOL, _ORDER = "skyward-pool", "skyward-order"  # labels
_PREFIX = "sky-"
_ANYWHERE = ("0.0.0.0/0", "::/0")
_GRACE = 30.0  # seconds: a server may be off for a moment between its creation and its start
_STATES = {
    NodeState.PENDING: MachineState.STARTING,
    NodeState.STARTING: MachineState.STARTING,
    NodeState.RUNNING: MachineState.RUNNING,
    NodeState.MIGRATING: MachineState.RUNNING,
    NodeState.UNKNOWN: MachineState.STARTING,
}
_ERRORS: dict[str, type[SkywardError]] = {
    "resource_unavailable": NoCapacity,
    "placement_error": NoCapacity,
    "resource_limit_exceeded": QuotaExceeded,
    "not_found": NotFound,
    "forbidden": AuthFailed,
    "token_readonly": AuthFailed,
}


@dataclass(frozen=True, eq=False)
class Hetzner(CloudProvider):
    """Servers at Hetzner Cloud.

    A server costs money as long as it exists, even when it is off, so it can't terminate itself; if your program dies,
    a background process deletes it. The login user is root, and a server is accepted only with the host key that it was
    sent. Each pool has a firewall that allows only SSH, and a key in the project, without which Hetzner would mail the
    owner a root password for each server; both are deleted with the pool.

    Prices are gross, including the public IPv4 address. Started hours are billed in full.

    Parameters
    ----------
    token
        API token of the project, with read and write permission. Default: ``HCLOUD_TOKEN``, or the active context of
        the vendor's command line, ``~/.config/hcloud/cli.toml``.
    region
        Location such as ``"fsn1"`` or ``"ash"``; None: all.
    architecture
        ``"x86"`` or ``"arm"``; None: both.
    image
        Name of a system image with cloud-init, or the id of a snapshot.
    ssh_from
        Networks that may reach the servers.
    usd_per_eur
        Exchange rate for prices in euros; the default is of November 2025.
    url
        Address of the API, if not Hetzner's own.
    """

    name: ClassVar[str] = "hetzner"
    # A server has its order's name, unique in the project: an order that is repeated finds its own server.
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.DESTROYS, Trait.RENTED, Trait.SAFE_CREATE})
    patience: ClassVar[float] = 300.0
    poll: ClassVar[float] = 2.0

    token: str | None = field(default=None, repr=False, metadata=SECRET)
    region: str | None = None
    architecture: str | None = None
    image: str = "ubuntu-24.04"
    ssh_from: Sequence[str] = _ANYWHERE
    usd_per_eur: float = USD_PER_EUR
    url: str | None = None

    def __post_init__(self) -> None:
        if self.architecture not in (None, "x86", "arm"):
            raise ConfigError(f"Hetzner architecture={self.architecture!r} is unknown; it is 'x86', 'arm' or None")
        if not self.usd_per_eur > 0:
            raise ConfigError(
                f"Hetzner usd_per_eur={self.usd_per_eur!r} is not an exchange rate; give a positive number"
            )
        if isinstance(self.ssh_from, str) or not self.ssh_from:
            raise ConfigError(f"Hetzner ssh_from={self.ssh_from!r} is not a list of networks, such as ['192.0.2.7/32']")
        object.__setattr__(self, "ssh_from", tuple(self.ssh_from))

    def make_driver(self) -> HetznerNodeDriver:
        """Make a driver with the token that is found."""
        return HetznerNodeDriver(_token(self.token), url=self.url or os.environ.get("HCLOUD_ENDPOINT") or API)

    def list_offers(self, driver: HetznerNodeDriver, resources: Resources) -> Iterator[Offer]:
        """List what is available now, and where."""
        rate = {"USD": 1.0, "EUR": self.usd_per_eur}.get(driver.ex_get_currency())
        sizes = driver.list_sizes()
        known = {place for size in sizes for place in size.extra["prices"]}
        if self.region not in {None, *known}:
            raise NotFound(f"hetzner: there is no region {self.region!r}; available: {', '.join(sorted(known))}")
        for size in sizes:
            if self.architecture not in (None, size.extra["architecture"]):
                continue
            for place, facts in size.extra["locations"].items():
                price = size.extra["prices"].get(place)
                if facts["available"] and self.region in (None, place):
                    yield Offer(
                        machine=size.id,
                        vcpus=size.extra["vcpus"],
                        memory=size.ram * 2**20,
                        region=place,
                        price=(price["gross"] + _ADDRESS) * rate if price and rate else None,
                        billing=Billing(unit=3600.0),
                    )

    def create_machines(self, driver: HetznerNodeDriver, order: Order) -> Sequence[Machine]:
        """Create one server, or return the one that the same order has created before."""
        offer = order.offer
        assert offer is not None
        labels = {_POOL: order.tag}
        key, firewall = _key(driver, order, labels), self._firewall(driver, order, labels)
        try:
            node = driver.create_node(
                order.name,
                offer.machine,
                self.image,
                offer.region,
                ex_user_data=first_boot.cloud_config(order, end=None, user="root"),
                ex_ssh_keys=[key],
                ex_firewalls=[firewall],
                ex_labels={**labels, _ORDER: order.name},
            )
        except HetznerError as error:
            if error.code != "uniqueness_error":
                raise
            made = [node for node in driver.list_nodes(_selector(order.tag)) if node.name == order.name]
            if not made:  # it is too new to be listed yet, or the name is somebody else's
                raise CloudError(f"hetzner: a server {order.name} exists but is not listed: {error}") from error
            node = made[0]
        return [_machine(node)]

    def list_machines(self, driver: HetznerNodeDriver, tag: str | None) -> Sequence[Machine]:
        """List servers by their labels."""
        found = [_machine(node) for node in driver.list_nodes(_selector(tag))]
        return [machine for machine in found if machine.tag.startswith(_PREFIX)]

    def destroy_machine(self, driver: HetznerNodeDriver, id: MachineId) -> None:
        """Delete the server; refused as "locked" while it is being created or deleted, and retried."""
        driver.destroy_node(id)

    def clear_leftovers(self, driver: HetznerNodeDriver, tag: str) -> None:
        """Delete the pool's key, and its firewall, which is refused while one of its servers is being deleted."""
        for firewall in driver.ex_list_firewalls(_selector(tag)):
            with _ignore_not_found():
                driver.ex_delete_firewall(firewall["id"])
        for key in driver.list_key_pairs(_selector(tag)):
            with _ignore_not_found():
                driver.delete_key_pair(key)

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map Hetzner's own errors by their codes."""
        if not isinstance(error, HetznerError):
            return None
        text = f"hetzner: {error}"
        if error.code == "token_readonly":
            text += ". Create a token with read and write permission"
        kind = _ERRORS.get(str(error.code), CloudError if error.transient else ProvisioningError)
        return kind(text)

    def examine(self, driver: HetznerNodeDriver) -> Iterator[Check]:
        """Check the currency of prices; the API does not show limits and permissions."""
        currency = driver.ex_get_currency()
        rate = f", counted as {self.usd_per_eur:g} US dollars each" if currency == "EUR" else ""
        yield Check("prices", currency in ("EUR", "USD"), f"in {currency}{rate}", "prices are treated as unknown")

    def _firewall(self, driver: HetznerNodeDriver, order: Order, labels: dict[str, str]) -> int:
        """Return the pool's firewall, which its first order creates."""
        found = driver.ex_list_firewalls(_selector(order.tag))
        if not found:
            try:
                found = [driver.ex_create_firewall(order.tag, sources=self.ssh_from, labels=labels)]
            except HetznerError as error:
                if error.code != "uniqueness_error":
                    raise
                found = driver.ex_list_firewalls(_selector(order.tag))  # created by another order at the same moment
        if not found:
            raise _not_listed("firewall", order.tag)
        return int(found[0]["id"])


def _key(driver: HetznerNodeDriver, order: Order, labels: dict[str, str]) -> KeyPair:
    """Return the pool's key in the project, which its first order creates."""
    found = driver.list_key_pairs(_selector(order.tag))
    if not found:
        try:
            found = [driver.import_key_pair_from_string(order.tag, order.user_key, ex_labels=labels)]
        except HetznerError as error:
            if error.code != "uniqueness_error":
                raise
            found = driver.list_key_pairs(_selector(order.tag))
    if not found:
        raise _not_listed("key", order.tag)
    return found[0]


def _not_listed(what: str, name: str) -> CloudError:
    return CloudError(f"hetzner: the project has a {what} {name}, but does not list it")


def _selector(tag: str | None) -> str:
    return _POOL if tag is None else f"{_POOL}={tag}"


@contextlib.contextmanager
def _ignore_not_found() -> Iterator[None]:
    try:
        yield
    except HetznerError as error:
        if error.code != "not_found":
            raise


def _machine(node: Node) -> Machine:
    """Convert libcloud's node to our machine."""
    state = _STATES.get(node.state, MachineState.FAILED)
    if node.state == NodeState.STOPPED and (datetime.now(UTC) - node.created_at).total_seconds() < _GRACE:
        state = MachineState.STARTING
    if state is MachineState.RUNNING and not node.public_ips:
        state = MachineState.STARTING
    labels: dict[str, Any] = node.extra["labels"] or {}
    return Machine(
        id=node.id,
        endpoint=Endpoint("ssh", node.public_ips[0], 22, "root") if node.public_ips else None,
        name=node.name,
        state=state,
        order=labels.get(_ORDER, ""),
        tag=labels.get(_POOL, ""),
        detail=f"Hetzner says {node.extra['status']!r}",
    )


def _token(given: str | None) -> str:
    """Find the project's token where the vendor's own tools look for it."""
    path = Path(os.environ.get("HCLOUD_CONFIG") or "~/.config/hcloud/cli.toml").expanduser()
    found = given or os.environ.get("HCLOUD_TOKEN") or _saved_token(path)
    if not found:
        raise AuthFailed(
            "hetzner: no credentials: neither Hetzner(token=...), nor HCLOUD_TOKEN in the environment, nor an active "
            f"context in {path}. Create a token in the console, in a project, under Security > API tokens"
        )
    return found


def _saved_token(path: Path) -> str | None:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    active = os.environ.get("HCLOUD_CONTEXT") or config.get("active_context")
    tokens = (context.get("token") for context in config.get("contexts", ()) if context.get("name") == active)
    return next(tokens, None)
