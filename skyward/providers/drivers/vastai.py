"""Vast.ai for apache-libcloud: the marketplace's public API as a `NodeDriver`.

It knows only libcloud and the standard library. Like every libcloud driver it blocks, and one object serves one thread;
threads share the rate limit of their account. A size is an *offer*: one machine of one host, which is gone once it is
rented. A node is an *instance*: a container whose SSH port is mapped to some port of the host.

Surprises: create has no idempotency token, so a lost reply leaves an instance that can only be found by its label. A
bid that fails may have created an instance all the same (`VastAILeftoverError`). Storage is billed as long as an
instance exists, even while it is stopped. An instance that was outbid may start again by itself, perhaps with another
SSH port.
"""

# libcloud claims to be typed, but few of its functions are.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import Node, NodeDriver, NodeSize
from libcloud.compute.types import NodeState

from .json_api import SHOWN
from .vastai_connection import (
    Pace,
    VastAIConnection,
    VastAIError,
    VastAILeftoverError,
    VastAINotFoundError,
    VastAIOfferGoneError,
    VastAIRateLimitError,
    VastAIResponse,
)

__all__ = [
    "VastAIConnection",
    "VastAIError",
    "VastAILeftoverError",
    "VastAINodeDriver",
    "VastAINotFoundError",
    "VastAIOfferGoneError",
    "VastAIRateLimitError",
    "VastAIResponse",
]

_SSH = "22/tcp"
_BROKEN_HOST = "OCI runtime create failed"
_NOT_TO_RETRY = "search_quota_exceeded"
_PAGE = 25  # maximum of the API

# The vendor's limits on a create call. What exceeds them is refused here, before it costs a paced call.
_MAX_START = 4096
_MAX_ENV = 32768
_MAX_LABEL = 256
_MIN_DISK = 8
_MIN_BID, _MAX_BID = 0.001, 128.0


class VastAINodeDriver(NodeDriver):
    """Vast.ai's instances.

    Calls of one account are spaced by `INTERVALS`, across all drivers and threads of this process. A call that is
    refused as coming too soon raises `VastAIRateLimitError` and delays those that follow; nothing is retried.

    Parameters
    ----------
    key
        API key of the account, or one with limited rights.
    url
        Base address of the API, if not the vendor's.
    pace
        Factor for all intervals; 0: none.
    options
        ``timeout`` (seconds, 60 by default), ``proxy_url`` and other keywords of libcloud's drivers.

    Notes
    -----
    `Node.extra` has all fields of the API, except that ``ssh_host`` and ``ssh_port`` are the *direct* address, and None
    unless the container runs and its port 22 is mapped.
    """

    name = "Vast.ai"
    connectionCls = VastAIConnection  # noqa: N815 (libcloud's name)

    INTERVALS: ClassVar[Mapping[str, float]] = {
        "search": 6.0,
        "create": 4.5,
        "list": 2.0,
        "show": 2.0,
        "destroy": 3.0,
        "user": 1.0,
    }
    """Minimum seconds between two calls of a kind. Searches are limited by the caller's address, others by account."""

    NODE_STATE_MAP = {  # noqa: RUF012 (libcloud declares it so)
        "created": NodeState.PENDING,
        "loading": NodeState.PENDING,
        "running": NodeState.RUNNING,
        "rebooting": NodeState.REBOOTING,
        "frozen": NodeState.PAUSED,
        "stopped": NodeState.STOPPED,
        "exited": NodeState.STOPPED,
        "offline": NodeState.ERROR,
        "unknown": NodeState.UNKNOWN,
    }
    """By ``actual_status``, which is null before "created"; the intended status and the host's message matter too."""

    OFFERED: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "verified": {"eq": True},
        "external": {"eq": False},
        "rentable": {"eq": True},
        "rented": {"eq": False},
    }
    """Default conditions of `ex_search_offers`, those of the vendor's clients."""

    def __init__(self, key: str, url: str | None = None, pace: float = 1.0, **options: Any) -> None:
        if not key:
            raise InvalidCredsError("Vast.ai needs an API key (key)")
        self._url = url
        self._pace = pace
        super().__init__(key, **options)

    def _ex_connection_class_kwargs(self) -> dict[str, Any]:
        return {"url": self._url}

    # Offers

    def ex_search_offers(
        self,
        query: Mapping[str, Mapping[str, object] | None] | None = None,
        type: str = "on-demand",
        storage: float = 16.0,
        limit: int | None = None,
    ) -> list[NodeSize]:
        """Search the market; the cheapest comes first.

        Parameters
        ----------
        query
            Conditions such as ``{"num_gpus": {"gte": 1}, "geolocation": {"in": ["US", "CA"]}}`` on top of `OFFERED`;
            None instead of a condition removes it. Operators: eq, neq, gt, gte, lt, lte, in, notin.
        type
            "on-demand", "reserved", or "bid" for instances that a higher bid may displace.
        storage
            GB of disk that ``dph_total`` is to include.
        limit
            Maximum number of offers.

        Returns
        -------
        sizes
            `price` is US dollars per hour: everything included, or for "bid" the lowest bid, without storage. `ram`
            (MB) and ``extra["cpus"]`` are the share of the host that comes with the offer; `extra` has the host's
            totals.
        """
        asked: dict[str, object] = {**self.OFFERED, **(query or {})}
        body = {name: condition for name, condition in asked.items() if condition is not None}
        body |= {"type": type, "order": [["dph_total", "asc"]], "allocated_storage": storage}
        if limit is not None:
            body["limit"] = limit
        reply = self._call("search", "POST", "/api/v0/bundles/", body=body)
        return [self._to_size(offer, type) for offer in _field(reply, "offers", list)]

    # Nodes

    def list_nodes(self) -> list[Node]:
        """List all instances of the account, in any state."""
        query = {
            "select_filters": "{}",
            "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
            "limit": str(_PAGE),
        }
        nodes: dict[Any, Node] = {}  # by id: instances created meanwhile may shift the pages
        seen: set[str] = set()
        while True:
            reply = self._call("list", "GET", "/api/v1/instances/", query=query)
            for row in _field(reply, "instances", list):
                nodes[row["id"]] = self._to_node(row)
            token = reply.get("next_token")
            if not token:
                return list(nodes.values())
            if token in seen:
                raise MalformedResponseError("GET /api/v1/instances/: the pages form a circle", str(token), self)
            seen.add(token)
            query["after_token"] = token

    def ex_get_node(self, node_id: str) -> Node:
        """Return one instance; `VastAINotFoundError` if there is none. For several, `list_nodes` takes fewer calls."""
        path = f"/api/v0/instances/{_number(node_id)}/"
        row = self._call("show", "GET", path, query={"owner": "me"}).get("instances")
        if not row:  # the API returns null, with status 200
            raise VastAINotFoundError(404, f"GET {path}: there is no such instance", error_code="no_such_instance")
        return self._to_node(row)

    def create_node(  # type: ignore[override]  # keywords beyond libcloud's, as all drivers have
        self,
        name: str,
        size: NodeSize,
        image: str,
        *,
        ex_disk: float = 16.0,
        ex_onstart: str | None = None,
        ex_env: Mapping[str, str] | None = None,
        ex_bid: float | None = None,
    ) -> Node:
        """Rent an offer and start a container there.

        Parameters
        ----------
        name
            Its label. Should be unique: there is no other way to find an instance whose reply was lost.
        size
            An offer.
        image
            Docker image, such as "python:3.12-slim", whose entrypoint sshd replaces.
        ex_disk
            GB.
        ex_onstart
            Bash script that root runs after every start of the container, when sshd is already up.
        ex_env
            Environment variables of the container. ``{"-p 8000:8000": "1"}`` maps a port.
        ex_bid
            US dollars per hour for the whole offer; makes the instance interruptible.

        Raises
        ------
        ValueError
            An argument is beyond the API's limits; nothing was sent.
        VastAIOfferGoneError
            Use another offer.
        VastAILeftoverError
            It failed, and an instance exists that must be destroyed.
        """
        body: dict[str, Any] = {
            "client_id": "me",
            "image": image,
            "label": name,
            "disk": ex_disk,
            "env": dict(ex_env or {}),
            "onstart": ex_onstart,
            "runtype": "ssh_direct",
            "price": ex_bid,
            "cancel_unavail": True,  # fail if the machine can't start it now: do not leave an instance that waits
        }
        _check_limits(body)
        path = f"/api/v0/asks/{_number(size.id)}/"
        reply = self._call("create", "PUT", path, body=body)
        return self._to_node({**reply, "id": _field(reply, "new_contract", int), "label": name})

    def destroy_node(self, node: Node | str) -> bool:
        """Destroy an instance and its disk; one that does not exist counts as destroyed."""
        with contextlib.suppress(VastAINotFoundError):
            id = node if isinstance(node, str) else str(node.id)
            self._call("destroy", "DELETE", f"/api/v0/instances/{_number(id)}/", body={})
        return True

    # The account

    def ex_show_user(self) -> dict[str, Any]:
        """Return the account as the API describes it; "credit" is the balance in US dollars."""
        reply = self._call("user", "GET", "/api/v0/users/current")
        return {**reply}

    # Calls and conversions

    def _call(
        self, kind: str, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        interval = self.INTERVALS[kind] * self._pace
        who = () if kind == "search" else (str(self.key),)
        pace = Pace.of(f"{self.connection.host}:{self.connection.port}", kind, *who)
        pace.wait(interval)
        data = None if body is None else json.dumps(body)
        options = {"params": dict(query or {}), "data": data, "method": method}
        try:
            # libcloud's optional retries ignore the pace, and would buy twice when a reply is lost.
            return self.connection.request(path, **options, retry_failed=False).object
        except VastAIRateLimitError as error:
            if error.error_code != _NOT_TO_RETRY:
                pace.postpone(max(error.retry_after, interval))
            raise

    def _to_size(self, offer: dict[str, Any], type: str) -> NodeSize:
        cores, ram = _share(offer)
        gpus = offer.get("num_gpus") or 0
        name = f"{gpus}x {offer.get('gpu_name')}" if gpus else f"CPU, {cores:g} cores"
        price: Any = offer.get("min_bid") if type == "bid" else offer.get("dph_total")
        extra = {**offer, "cpus": cores, "country": _country(offer.get("geolocation")), "type": type}
        return NodeSize(str(offer["id"]), name, ram, int(offer.get("disk_space") or 0), 0, price, self, extra)

    def _to_node(self, row: dict[str, Any]) -> Node:
        address = (row.get("public_ipaddr") or "").strip()
        port = _mapped_port(row) if row.get("actual_status") == "running" else None
        extra = {**row, "ssh_host": address if port else None, "ssh_port": port}
        return Node(
            id=str(row["id"]),
            name=row.get("label") or "",
            state=self._state(row),
            public_ips=[address] if address else [],
            private_ips=(row.get("local_ipaddrs") or "").split(),
            driver=self,
            extra=extra,
        )

    def _state(self, row: Mapping[str, Any]) -> NodeState:
        actual = row.get("actual_status") or "created"
        if _BROKEN_HOST in (row.get("status_msg") or ""):
            return NodeState.ERROR
        if row.get("intended_status") == "stopped" and actual in {"created", "loading"}:
            return NodeState.STOPPED
        if row.get("intended_status") == "stopped" and actual == "running":
            return NodeState.STOPPING
        return self.NODE_STATE_MAP.get(actual, NodeState.UNKNOWN)


def _field(reply: Any, name: str, kind: type[Any]) -> Any:
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind):
        raise MalformedResponseError(f"the reply has no {name} ({kind.__name__} expected)", str(reply)[:SHOWN])
    return value


def _number(id: str) -> int:
    """Check an id before it goes into a path; all of Vast.ai's are numbers."""
    try:
        return int(id)
    except ValueError:
        raise ValueError(f"{id!r} is not an id of Vast.ai, which are numbers") from None


def _check_limits(body: Mapping[str, Any]) -> None:
    bid, disk = body["price"], body["disk"]
    start = len(body["onstart"] or "")
    env = len(json.dumps(body["env"]))
    wrong = [
        (start > _MAX_START, f"onstart has {start} characters; the maximum is {_MAX_START}"),
        (env > _MAX_ENV, f"env has {env} characters; the maximum is {_MAX_ENV}"),
        (len(body["label"]) > _MAX_LABEL, f"the name has {len(body['label'])} characters; the maximum is {_MAX_LABEL}"),
        (disk < _MIN_DISK, f"a disk of {disk:g} GB is too small; the minimum is {_MIN_DISK} GB"),
        (
            bid is not None and not _MIN_BID <= bid <= _MAX_BID,
            f"a bid of ${bid}/h is not between ${_MIN_BID} and ${_MAX_BID:g}",
        ),
    ]
    for is_wrong, message in wrong:
        if is_wrong:
            raise ValueError(f"Vast.ai would refuse this instance: {message}")


def _share(offer: Mapping[str, Any]) -> tuple[float, int]:
    """Return cores and MB of memory that come with an offer, which shows the memory of the whole host."""
    all_cores, cores, ram = offer.get("cpu_cores"), offer.get("cpu_cores_effective"), offer.get("cpu_ram") or 0
    if all_cores and cores:
        part = min(1.0, cores / all_cores)
    else:  # hosts may not state how many cores they have
        part = min(1.0, offer.get("gpu_frac") or 1.0)
        cores = cores or (all_cores or 0) * part
    return float(cores), int(ram * part)


def _country(place: str | None) -> str | None:
    """Return the two-letter code at the end of "California, US"."""
    code = (place or "").rpartition(",")[2].strip()
    return code if len(code) == 2 and code.isupper() else None


def _mapped_port(row: Mapping[str, Any]) -> int | None:
    """Return the host's port that leads to the container's sshd; IPv4 and IPv6 may have an entry each."""
    entries = (row.get("ports") or {}).get(_SSH) or []
    entries = sorted(entries, key=lambda entry: ":" in (entry.get("HostIp") or ""))
    return int(entries[0]["HostPort"]) if entries and entries[0].get("HostPort") else None
