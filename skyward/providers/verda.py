"""Verda (formerly DataCrunch): GPU and CPU machines in Finland and Iceland."""

from __future__ import annotations

import configparser
import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from libcloud.compute.base import NodeImage, NodeLocation
from libcloud.compute.types import NodeState

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    QuotaExceeded,
    SkywardError,
)
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources, parse_count
from skyward.providers import first_boot
from skyward.providers.base import SECRET, Check, CloudProvider
from skyward.providers.drivers.verda import (
    VerdaError,
    VerdaNoCapacityError,
    VerdaNodeDriver,
    VerdaNotFoundError,
    VerdaStillProvisioningError,
)
from skyward.providers.names import pool_of

__all__ = ["Verda"]

_HOURS_OF_A_MONTH = 730
_STATES = {
    NodeState.PENDING: MachineState.STARTING,
    NodeState.STARTING: MachineState.STARTING,
    NodeState.RUNNING: MachineState.RUNNING,
    NodeState.UNKNOWN: MachineState.STARTING,
    NodeState.TERMINATED: MachineState.GONE,
}
_NO_FUNDS = 402


@dataclass(frozen=True, eq=False)
class Verda(CloudProvider):
    """Machines at Verda.

    A machine costs money as long as it exists, shut down or not, so it can't terminate itself; if your program dies, a
    background process deletes it. Machines get their host key from the startup script, and the login user is root.

    Parameters
    ----------
    client_id, client_secret
        Default: ``VERDA_CLIENT_ID`` and ``VERDA_CLIENT_SECRET``, or section ``[default]`` of ``~/.verda/credentials``.
    region
        Location code such as ``"FIN-01"``; None: all.
    image
        Image type such as ``"ubuntu-24.04"``; None: Ubuntu 24.04, with CUDA for machines with GPUs.
    disk
        Size of the OS volume in GB, at least 50.
    url
        Address of the API, if not Verda's own.
    """

    name: ClassVar[str] = "verda"

    client_id: str | None = field(default=None, repr=False, metadata=SECRET)
    client_secret: str | None = field(default=None, repr=False, metadata=SECRET)
    region: str | None = None
    image: str | None = None
    disk: int = 50
    url: str | None = None

    def __post_init__(self) -> None:
        parse_count(self.disk, "Verda disk", 50)

    def make_driver(self) -> VerdaNodeDriver:
        """Create a driver with the credentials that are found."""
        key, secret, url = _credentials(self.client_id, self.client_secret)
        return VerdaNodeDriver(key, secret, url=self.url or url)

    def list_offers(self, driver: VerdaNodeDriver, resources: Resources) -> Iterator[Offer]:
        """List what is available now, and where."""
        where = {spot: driver.ex_availability(is_spot=spot) for spot in (False, True)}
        known = {location for places in where.values() for location in places}
        if self.region is not None and self.region not in known:
            raise NotFound(f"verda: there is no region {self.region!r}; available: {', '.join(sorted(known))}")
        volume = self.disk * (driver.ex_volume_price() or 0.0) / _HOURS_OF_A_MONTH
        for size in driver.list_sizes():
            for spot, places in where.items():
                for location, kinds in places.items():
                    if size.id in kinds and self.region in (None, location):
                        count = size.extra["gpu_count"]
                        price = size.extra["spot_price"] if spot else size.price
                        yield Offer(
                            machine=size.id,
                            vcpus=size.extra["cores"],
                            memory=size.ram * 2**20,
                            accelerator=_model(size.extra["gpu"]["description"]) if count else None,
                            accelerators=count,
                            accelerator_memory=int(size.extra["gpu_memory_gb"] / count * 10**9) if count else None,
                            region=location,
                            spot=spot,
                            price=None if price is None else price + volume,
                            extra={"size": size.id, "images": tuple(size.extra.get("supported_os") or ())},
                        )

    def create_machines(self, driver: VerdaNodeDriver, order: Order) -> Sequence[Machine]:
        """Create one machine. Its script and login key are removed with the pool."""
        offer = order.offer
        assert offer is not None
        assert offer.region is not None
        size = next((size for size in driver.list_sizes() if size.id == offer.machine), None)
        if size is None:
            raise NotFound(f"verda: there is no instance type {offer.machine!r}")
        image = self.image or _image([image.id for image in driver.list_images(ex_size=size)])
        script = driver.ex_create_startup_script(order.name, first_boot.script(order, end=None))
        key = driver.import_key_pair_from_string(order.name, order.user_key)
        volume: dict[str, object] = {"name": order.name, "size": self.disk}
        if offer.spot:  # by default an evicted machine's volume stays, and costs money
            volume["on_spot_discontinue"] = "delete_permanently"
        node = driver.create_node(
            order.name,
            size,
            NodeImage(image, image, driver),
            location=NodeLocation(offer.region, offer.region, "", driver),
            ex_ssh_key_ids=[key.extra["id"]],
            ex_startup_script_id=script.id,
            ex_is_spot=offer.spot,
            ex_os_volume=volume,
            ex_description=f"skyward pool {order.tag}",
        )
        return [_machine(node)]

    def list_machines(self, driver: VerdaNodeDriver, tag: str | None) -> Sequence[Machine]:
        """List machines by their host names, which are the names of their orders."""
        machines = [_machine(node) for node in driver.list_nodes() if pool_of(node.name)]
        return [machine for machine in machines if tag in (None, machine.tag)]

    def destroy_machine(self, driver: VerdaNodeDriver, id: MachineId) -> None:
        """Delete the machine and its volumes."""
        driver.destroy_node(driver.ex_get_node(id))

    def clear_leftovers(self, driver: VerdaNodeDriver, tag: str) -> None:
        """Delete scripts, keys, and volumes that outlived their machines."""
        for script in driver.ex_list_startup_scripts():
            if pool_of(script.name) == tag:
                with contextlib.suppress(VerdaNotFoundError):
                    driver.ex_delete_startup_script(script)
        for key in driver.list_key_pairs():
            if pool_of(key.name) == tag:
                with contextlib.suppress(VerdaNotFoundError):
                    driver.delete_key_pair(key)
        for volume in driver.list_volumes():
            if pool_of(volume.name) == tag:
                with contextlib.suppress(VerdaNotFoundError):
                    driver.destroy_volume(volume)

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map Verda's own errors."""
        text = f"verda: {error}"
        if isinstance(error, VerdaNoCapacityError):
            return NoCapacity(text)
        if isinstance(error, VerdaStillProvisioningError):
            return CloudError(text)
        if isinstance(error, VerdaNotFoundError):
            return NotFound(text)
        if isinstance(error, VerdaError) and int(error.code) == _NO_FUNDS:
            return QuotaExceeded(f"{text}. Does the account have credit?")
        return None

    def examine(self, driver: VerdaNodeDriver) -> Iterable[Check]:
        """Check the balance: at zero, machines are terminated."""
        amount, currency = driver.ex_balance()
        return [Check("balance", amount > 0, f"{amount:.2f} {currency}", "add funds, or nothing can be created")]


def _machine(node: object) -> Machine:
    """Convert libcloud's node to our machine."""
    name, extra = str(node.name), node.extra  # type: ignore[attr-defined]
    state = _STATES.get(node.state, MachineState.FAILED)  # type: ignore[attr-defined]
    addresses = node.public_ips  # type: ignore[attr-defined]
    if state is MachineState.RUNNING and not addresses:
        state = MachineState.STARTING
    return Machine(
        id=str(node.id),  # type: ignore[attr-defined]
        endpoint=Endpoint("ssh", addresses[0], 22, "root") if addresses else None,
        name=name,
        state=state,
        order=name,
        tag=pool_of(name),
        detail=f"Verda says {extra.get('status')!r}",
    )


def _model(description: str) -> str:
    """Return the model in the API's description: what follows the count in "8x H100 SXM5 80GB"."""
    return description.partition("x ")[2] or description


def _image(images: Sequence[str]) -> str:
    """Choose plain Ubuntu 24.04 where the machine takes it, or else the newest Ubuntu with CUDA."""
    if "ubuntu-24.04" in images:
        return "ubuntu-24.04"
    ubuntu = sorted(name for name in images if name.startswith("ubuntu-"))
    if not ubuntu:
        raise ProvisioningError(f"verda: no Ubuntu image fits this machine; name one of {list(images)} with image=")
    return max(ubuntu, key=lambda name: (name.startswith("ubuntu-24.04-cuda"), "open" in name, name))


def _credentials(client_id: str | None, client_secret: str | None) -> tuple[str, str, str | None]:
    """Find id, secret and perhaps the API's address where the vendor's own tools look for them."""
    env = os.environ
    file = Path("~/.verda/credentials").expanduser()
    config = configparser.ConfigParser()
    with contextlib.suppress(OSError, configparser.Error):
        config.read(file)
    saved = config["default"] if config.has_section("default") else {}
    key = client_id or env.get("VERDA_CLIENT_ID") or saved.get("verda_client_id")
    secret = client_secret or env.get("VERDA_CLIENT_SECRET") or saved.get("verda_client_secret")
    if not key or not secret:
        raise AuthFailed(
            "verda: no credentials: neither sky.Verda(client_id=..., client_secret=...), nor VERDA_CLIENT_ID and "
            f"VERDA_CLIENT_SECRET in the environment, nor section [default] of {file}"
        )
    return key, secret, env.get("VERDA_BASE_URL") or saved.get("verda_base_url")
