"""Vast.ai: a market where hosts offer machines, each of them once, and rent them out as containers.

An ask on the market is one machine, and gone as soon as anybody takes it. Core sees kinds instead: asks of the same
type with similar prices. Which ask an order takes is decided when it is placed, from a recent search, so that an offer
stays valid for as long as a pool lives.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from libcloud.compute.types import NodeState

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
from skyward.core.machines import offer_selection
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources
from skyward.providers import first_boot
from skyward.providers.base import SECRET, Check, CloudProvider
from skyward.providers.drivers.vastai import (
    VastAIConnection,
    VastAIError,
    VastAILeftoverError,
    VastAINodeDriver,
    VastAINotFoundError,
    VastAIOfferGoneError,
    VastAIRateLimitError,
)
from skyward.providers.names import pool_of

__all__ = ["VastAI"]

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_CPU_IMAGE = f"python:{_PYTHON}"
_GPU_IMAGE = f"vastai/base-image:cuda-12.4.1-cudnn-devel-ubuntu22.04-py{_PYTHON.replace('.', '')}"
_GPU_CUDA = 12.4  # what a host's driver must support for that image

_STEP = 1.1  # asks of one kind cost at most this times the cheapest of them
_YOUNG, _NEW = 60.0, 20.0  # seconds for which a search is reused; the second if it shows nothing to take
_LAG = 30.0  # seconds for which a search may still show asks that are taken
_MAX_OFFERS = 3000
_AND = ", "  # between the countries of a kind
_HOURS_OF_A_MONTH = 730.0
_MIN_DISK = 8
_MIN_BID = 0.001

# Run by root before everything else, at every start of the container.
_BEFORE = f"""\
touch ~/.no_auto_tmux
chown 0:0 ~ ~/.ssh ~/.ssh/authorized_keys 2>/dev/null  # some hosts own them differently, which sshd refuses
chmod go-w ~
# The container's own id and key are in its first process's environment, from wherever this script is started.
[ -n "$CONTAINER_API_KEY" ] || export $(tr '\\0' '\\n' </proc/1/environ | grep -E '^CONTAINER_(ID|API_KEY)=')
# In the vendor's images this is the Python of the image's tag, but it is not in PATH.
[ ! -x /venv/main/bin/python{_PYTHON} ] || ln -sf /venv/main/bin/python{_PYTHON} /usr/local/bin/"""

# With a key that allows nothing else; a stopped container would still cost money, and might start again by itself.
_END = """\
url=URL/api/v0/instances/$CONTAINER_ID/
curl -fsS -m 30 -X DELETE -H "Authorization: Bearer $CONTAINER_API_KEY" -H "Content-Type: application/json" \
-d "{}" "$url" || python3 -I -c 'import os, sys, urllib.request as u
head = {"Authorization": "Bearer " + os.environ["CONTAINER_API_KEY"], "Content-Type": "application/json"}
u.urlopen(u.Request(sys.argv[1], b"{}", head, method="DELETE"), timeout=30)' "$url\""""


@dataclass(frozen=True, eq=False)
class VastAI(CloudProvider):
    """Machines of hosts anywhere, through `Vast.ai <https://vast.ai>`_.

    Only verified hosts with a direct SSH port are used. Spot machines are Vast.ai's interruptible instances: a higher
    bid may stop one without notice, which then counts as lost and is destroyed. A node terminates itself with its
    container's own key when its owner is gone. The host's operator can see everything on a node, so it is no place for
    secrets. They can also return what they like, so results are read as data: see ``Compute(results=...)``.

    Parameters
    ----------
    api_key
        None: the environment variable ``VAST_API_KEY``, or the file where the vendor's tools keep it.
    image
        Docker image based on Debian or Ubuntu; Vast.ai adds its sshd. None: one with the driver's minor version of
        Python; the vendor's with CUDA where there are GPUs.
    disk
        Disk of each node in GB.
    countries
        Two-letter codes, such as ``["SE", "DE"]``; empty: anywhere.
    min_reliability
        Minimum reliability of the host, from 0 to 1, as Vast.ai measures it.
    bid_factor
        For spot machines: what is bid, and paid, as a multiple of the lowest bid that currently wins.
    url
        Base address of the API.
    pace
        Factor for the intervals between calls that Vast.ai requires.

    Raises
    ------
    ConfigError
        A value is out of range.
    """

    name: ClassVar[str] = "vastai"
    traits: ClassVar[frozenset[Trait]] = CloudProvider.traits | {Trait.STRANGERS}
    listing_delay: ClassVar[float] = 15.0
    poll: ClassVar[float] = 5.0

    api_key: str | None = field(default=None, repr=False, metadata=SECRET)
    image: str | None = None
    disk: float = 32
    countries: Sequence[str] = ()
    min_reliability: float = 0.95
    bid_factor: float = 1.1
    url: str | None = None
    pace: float = 1.0

    def __post_init__(self) -> None:
        codes = self.countries
        if isinstance(codes, str) or not all(re.fullmatch("[A-Za-z]{2}", str(code)) for code in codes):
            raise ConfigError(f'VastAI countries={codes!r} is not a list of two-letter codes; write for example ["SE"]')
        object.__setattr__(self, "countries", tuple(code.upper() for code in codes))
        if not self.disk >= _MIN_DISK:
            raise ConfigError(f"VastAI disk={self.disk!r} is too small; the minimum is {_MIN_DISK} GB")
        if not 0 <= self.min_reliability <= 1:
            raise ConfigError(f"VastAI min_reliability={self.min_reliability!r} is not between 0 and 1")
        if not self.bid_factor >= 1:
            raise ConfigError(f"VastAI bid_factor={self.bid_factor!r} is below 1: such a bid is never accepted")
        if self.url is not None and urlsplit(self.url).scheme not in {"http", "https"}:
            raise ConfigError(f'VastAI url={self.url!r} is not an address such as "https://{VastAIConnection.host}"')

    # --- credentials ---

    def make_driver(self) -> VastAINodeDriver:
        """Make a driver with the key."""
        return VastAINodeDriver(self.api_key or _find_key(), url=self.url, pace=self.pace)

    # --- the market ---

    def list_offers(self, driver: VastAINodeDriver, resources: Resources) -> Iterable[Offer]:
        """List what meets `resources`, as kinds, and all other asks as they are, for errors to name the closest."""
        asks = [ask for spot in (False, True) for ask in self._asks(driver, spot, 0.0)[1]]
        fitting = [ask for ask in asks if offer_selection.meets(ask, resources)]
        others = [ask for ask in asks if not offer_selection.meets(ask, resources)]
        return [*_kinds(fitting), *others]

    def _asks(self, driver: VastAINodeDriver, spot: bool, age: float) -> tuple[float, Sequence[Offer]]:
        """Return when a search at most `age` seconds old was made, and its asks, each as an offer."""
        memory = _memory(self)
        with memory.searching:
            when, asks = memory.found.get(spot, (float("-inf"), ()))
            if when < max(time.monotonic() - age, memory.changed):
                when = time.monotonic()
                asks = self._search(driver, spot)
                memory.found[spot] = when, asks
            return when, asks

    def _search(self, driver: VastAINodeDriver, spot: bool) -> Sequence[Offer]:
        query: dict[str, Mapping[str, object] | None] = {
            "direct_port_count": {"gte": 1},
            "disk_space": {"gte": self.disk},
            "reliability2": {"gte": self.min_reliability},
        }
        if self.countries:
            query["geolocation"] = {"in": list(self.countries)}
        kind = "bid" if spot else "on-demand"
        sizes = driver.ex_search_offers(query, type=kind, storage=self.disk, limit=_MAX_OFFERS)
        return [offer for size in sizes if (offer := self._offer(size, spot)) is not None]

    def _offer(self, size: Any, spot: bool) -> Offer | None:
        """Convert an ask to an offer; None if it is of no use."""
        row = size.extra
        gpus = int(row.get("num_gpus") or 0)
        if gpus and self.image is None and float(row.get("cuda_max_good") or 0) < _GPU_CUDA:
            return None
        price, bid = row.get("dph_total"), None
        if spot:
            if not (lowest := float(row.get("min_bid") or 0)):
                return None
            bid = round(max(_MIN_BID, lowest * self.bid_factor), 6)
            price = bid + float(row.get("storage_cost") or 0) * self.disk / _HOURS_OF_A_MONTH
        cores = float(row["cpus"])
        return Offer(
            machine=f"{gpus}x {row['gpu_name']}" if gpus else f"{cores:g}x CPU",
            vcpus=int(cores) or None,
            memory=int(size.ram) * 10**6 or None,
            accelerator=row.get("gpu_name") if gpus else None,
            accelerators=gpus,
            accelerator_memory=int(row.get("gpu_ram") or 0) * 2**20 or None if gpus else None,
            region=row.get("country") or "unknown",
            spot=spot,
            price=None if price is None else round(float(price), 6),
            extra={"size": size, "bid": bid, "host": row.get("machine_id")},
        )

    # --- machines ---

    def create_machines(self, driver: VastAINodeDriver, order: Order) -> Sequence[Machine]:
        """Rent the cheapest machine of the offer's kind."""
        assert order.offer is not None
        gone: VastAIOfferGoneError | None = None
        for age in (_YOUNG, _NEW):
            while (ask := self._take(driver, order, age)) is not None:
                try:
                    return [self._rent(driver, order, ask)]
                except VastAIOfferGoneError as error:
                    gone = error
        raise NoCapacity(f"{self.name}: no host offers {order.offer} any more") from gone

    def _take(self, driver: VastAINodeDriver, order: Order, age: float) -> Offer | None:
        """Take an ask that no other order of this process has tried; None if a search of this age has none."""
        memory = _memory(self)
        when, asks = self._asks(driver, order.offer.spot if order.offer else False, age)
        with memory.lock:
            fitting = [
                ask
                for ask in asks
                if _is_of(ask, order) and memory.taken.get(_id(ask), float("-inf")) < when - _LAG
                if ask.extra["host"] not in memory.broken
            ]
            # A host that we have used may be the one that never answered.
            chosen = min(fitting, key=lambda ask: (ask.extra["host"] in memory.used, ask.price or 0.0), default=None)
            if chosen is not None:
                memory.taken[_id(chosen)] = time.monotonic()
            return chosen

    def _rent(self, driver: VastAINodeDriver, order: Order, ask: Offer) -> Machine:
        memory, bid = _memory(self), ask.extra["bid"]
        try:
            node = driver.create_node(
                f"{order.tag}/{order.name}",
                ask.extra["size"],  # type: ignore[arg-type]  # only we look into an offer's extra
                self.image or (_GPU_IMAGE if ask.accelerators else _CPU_IMAGE),
                ex_disk=self.disk,
                ex_onstart=self._onstart(order),
                ex_bid=bid,  # type: ignore[arg-type]  # as above
            )
        except VastAIOfferGoneError:
            raise
        except VastAILeftoverError as error:
            self._destroy_leftover(error)
            raise
        except Exception:
            memory.taken.pop(_id(ask), None)  # the ask itself is fine
            raise
        memory.used.add(ask.extra["host"])
        return Machine(str(node.id), None, order.name, state=MachineState.STARTING, order=order.name, tag=order.tag)

    def _onstart(self, order: Order) -> str:
        url = (self.url or f"https://{VastAIConnection.host}").rstrip("/")
        return first_boot.script(order, end=_END.replace("URL", url), before=_BEFORE)

    def _destroy_leftover(self, error: VastAILeftoverError) -> None:
        """Destroy what a refused order left."""
        try:
            self.destroy([error.contract_id])
        except SkywardError as failure:
            raise CloudError(f"{self.name}: {error}; that failed: {failure}") from error

    def list_machines(self, driver: VastAINodeDriver, tag: str | None) -> Sequence[Machine]:
        """List instances by their labels; the API can't search for a part of one."""
        machines = []
        for node in driver.list_nodes():
            pool, _, order = node.name.partition("/")
            if pool and pool_of(order) == pool and tag in {None, pool}:
                machines.append(self._machine(node, pool, order))
        return machines

    def _machine(self, node: Any, tag: str, order: str) -> Machine:
        row = node.extra
        state, detail = _state(node)
        if state is MachineState.FAILED:
            _memory(self).broken.add(row.get("machine_id"))
        there = state is MachineState.RUNNING
        endpoint = Endpoint("ssh", row["ssh_host"], row["ssh_port"], "root") if there else None
        return Machine(str(node.id), endpoint, order, state=state, order=order, tag=tag, detail=detail)

    def destroy_machine(self, driver: VastAINodeDriver, id: MachineId) -> None:
        """Destroy an instance with its disk."""
        if id.isdecimal():  # all of Vast.ai's ids are numbers
            driver.destroy_node(id)
            _memory(self).changed = time.monotonic()

    # --- the rest ---

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map errors by the API's own codes."""
        text = f"{self.name}: {error}"
        if isinstance(error, VastAILeftoverError):
            text += ", which has been done"  # in _rent, or we would not be here
        if isinstance(error, VastAIRateLimitError) and error.error_code == "search_quota_exceeded":
            return QuotaExceeded(f"{text}. The account may search again after midnight UTC")
        if isinstance(error, VastAIOfferGoneError):
            return NoCapacity(text)
        if isinstance(error, VastAINotFoundError):
            return NotFound(text)
        if isinstance(error, VastAIError):
            if error.error_code == "invalid_price":
                return NoCapacity(f"{text}. Others bid more; a higher bid_factor may help")
            if error.error_code is not None and "credit" in error.error_code:
                return QuotaExceeded(f"{text}. Add credit at https://cloud.vast.ai/billing/")
            if isinstance(error, VastAILeftoverError):  # whatever its status, it is known what was created
                return ProvisioningError(text)
        return None

    def examine(self, driver: VastAINodeDriver) -> Iterable[Check]:
        """Check the balance: without any, nothing is rented, and what runs is stopped."""
        credit = float(driver.ex_show_user().get("credit") or 0)
        advice = "" if credit > 0 else "add credit at https://cloud.vast.ai/billing/: without any, nothing is rented"
        return [Check("balance", credit > 0, f"${credit:.2f} left", advice)]


# --- what one provider remembers of the market ---


class _Memory:
    """Searches, and asks that were tried. Not in the provider itself, which is frozen and pickled."""

    def __init__(self) -> None:
        self.searching = threading.Lock()  # held during a search, whose result waiting threads use; guards `found`
        self.found: dict[bool, tuple[float, Sequence[Offer]]] = {}  # spot -> when, asks
        self.changed = float("-inf")  # when we last destroyed a machine, which is a new ask by now
        self.lock = threading.Lock()  # guards choosing and `taken` together
        self.taken: dict[str, float] = {}  # id of an ask -> when an order took it
        self.used: set[object] = set()  # hosts where we rented
        self.broken: set[object] = set()  # hosts that failed


_memories: weakref.WeakKeyDictionary[VastAI, _Memory] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # guards the table


def _memory(provider: VastAI) -> _Memory:
    with _lock:
        return _memories.setdefault(provider, _Memory())


# --- asks and kinds ---


def _id(ask: Offer) -> str:
    return str(ask.extra["size"].id)  # type: ignore[attr-defined]  # only we look into an offer's extra


def _is_of(ask: Offer, order: Order) -> bool:
    """Whether an ask is what was ordered, at no higher price."""
    kind = order.offer
    assert kind is not None
    same = (ask.machine, ask.spot) == (kind.machine, kind.spot) and ask.region in (kind.region or "").split(_AND)
    cheap = kind.price is None or (ask.price is not None and ask.price <= kind.price)
    return same and cheap and offer_selection.meets(ask, order.resources)


def _kinds(asks: Iterable[Offer]) -> Iterator[Offer]:
    """Merge asks of one type with similar prices into one offer, with the worst of each value."""

    def type_of(ask: Offer) -> tuple[str, bool]:
        return ask.machine, ask.spot

    for _, same in itertools.groupby(sorted(asks, key=lambda ask: (*type_of(ask), ask.price or 0.0)), type_of):
        kind: list[Offer] = []
        for ask in same:
            if kind and (ask.price or 0.0) > (kind[0].price or 0.0) * _STEP:
                yield _worst(kind)
                kind = []
            kind.append(ask)
        yield _worst(kind)


def _worst(asks: Sequence[Offer]) -> Offer:
    """Make one offer of several asks, of which the last is the most expensive."""
    return replace(
        asks[-1],
        vcpus=min(ask.vcpus or 0 for ask in asks) or None,
        memory=min(ask.memory or 0 for ask in asks) or None,
        accelerator_memory=min(ask.accelerator_memory or 0 for ask in asks) or None,
        region=_AND.join(sorted({ask.region or "" for ask in asks})),
        extra={"asks": tuple(_id(ask) for ask in asks)},  # distinguish two kinds of one type
    )


# --- states ---


def _state(node: Any) -> tuple[MachineState, str]:
    """Return the state that an instance's several statuses amount to, and why it is no longer usable, if so."""
    row = node.extra
    said = (row.get("status_msg") or "").strip()
    actual = row.get("actual_status")
    if node.state is NodeState.ERROR:
        return MachineState.FAILED, said or f"the host is {actual}"
    if node.state in {NodeState.STOPPED, NodeState.STOPPING, NodeState.PAUSED}:
        if row.get("is_bid"):
            return MachineState.PREEMPTED, "outbid"
        return MachineState.FAILED, said or f"it was stopped ({actual}): by its host, by hand, or for lack of credit"
    if actual == "unknown":
        return MachineState.FAILED, said or "its host does not respond"
    if node.state is NodeState.RUNNING and row["ssh_port"] and row["ssh_host"]:
        return MachineState.RUNNING, ""
    return MachineState.STARTING, ""


def _find_key() -> str:
    """Find the API key where the vendor's tools look for it."""
    if key := os.environ.get("VAST_API_KEY", "").strip():
        return key
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    places = [config / "vastai" / "vast_api_key", Path("~/.vast_api_key").expanduser()]
    for place in places:
        try:
            if key := place.read_text().strip():
                return key
        except OSError:
            continue
    raise AuthFailed(
        f"vastai: no API key: none in the environment variable VAST_API_KEY, in {places[0]} or in {places[1]}. "
        "Create one at https://cloud.vast.ai/manage-keys/, and put it there or pass VastAI(api_key=...)"
    )
