"""Hetzner Cloud as a compute driver of Apache Libcloud. Knows only the API.

Written against the public reference of API version 1 (docs.hetzner.cloud). Prices are per hour, in the project's
currency (`HetznerNodeDriver.ex_get_currency`); sizes and locations are identified by name ("cx23", "fsn1"); what
Libcloud has no field for is in `extra`, or an ``ex_`` method. As with every Libcloud driver, threads must not share an
object.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar

from libcloud.common.base import ConnectionKey, JsonResponse
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import KeyPair, Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.types import KeyPairDoesNotExistError, NodeState

__all__ = [
    "API",
    "TRANSIENT",
    "HetznerError",
    "HetznerNodeDriver",
    "HetznerRateLimitError",
    "HetznerUnauthorizedError",
]

API = "https://api.hetzner.cloud/v1"
USER_DATA_LIMIT = 32 * 1024
_PER_PAGE = 50  # maximum of the API
_MAX_WAIT = 60.0
_KEY_BODY = 2  # words of a public key without its comment

TRANSIENT = frozenset(
    {
        "action_failed",  # of an action, not of a call: the next one may succeed
        "bad_gateway",
        "conflict",  # the resource was changed meanwhile
        "locked",  # an action of the resource is still running
        "maintenance",
        "resource_in_use",  # a firewall whose server is being deleted
        "robot_unavailable",
        "service_error",
        "timeout",
        "unavailable",
    }
)
"""Codes of errors after which the same call may succeed a little later."""


class HetznerError(BaseHTTPError):  # type: ignore[misc]  # Libcloud's base has no types
    """The API refused a call, or an action failed.

    Attributes
    ----------
    code
        The API's own code, such as "resource_unavailable", "placement_error", "resource_limit_exceeded",
        "uniqueness_error", "not_found" or "invalid_input"; "http_502" and the like where something else answered.
    status
        The HTTP status; None for an action that failed.
    details
        The API's details: for "invalid_input" the fields, and what is wrong with each.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        details: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, dict(headers or {}))
        self.status = status
        self.details = details

    def __str__(self) -> str:
        trace = (self.headers or {}).get("x-correlation-id")
        parts = [str(self.code), *([f"correlation id {trace}"] if trace else [])]
        return f"{self.message}{_field_messages(self.details)} ({', '.join(parts)})"

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a little later, unchanged."""
        return self.code in TRANSIENT or (self.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR


class HetznerUnauthorizedError(InvalidCredsError):  # type: ignore[misc]
    """The token is unknown, expired or revoked."""

    code = "unauthorized"

    def __str__(self) -> str:
        return f"{self.value} ({self.code}): check the API token (in the console under Security > API tokens)"


class HetznerRateLimitError(RateLimitReachedError):  # type: ignore[misc]
    """Too many calls for this project.

    Attributes
    ----------
    code
        "rate_limit_exceeded".
    reset_after
        Seconds until the whole allowance is restored, up to an hour.
    retry_after
        Seconds to wait: the same, but at most a minute, since the allowance grows by one call per second.
    """

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(headers=dict(headers))
        self.code = "rate_limit_exceeded"
        self.message = message
        self.status = int(HTTPStatus.TOO_MANY_REQUESTS)
        self.reset_after = max(0.0, _number(headers.get("ratelimit-reset"), 0.0) - time.time())
        self.retry_after = max(1.0, min(self.reset_after, _MAX_WAIT))

    def __str__(self) -> str:
        return f"{self.message} ({self.code}): wait {self.retry_after:.0f} s"


class _Response(JsonResponse):  # type: ignore[misc]
    """A reply of the API; errors are {"error": {"code", "message", "details"}}."""

    def success(self) -> bool:
        return bool(HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES)

    def parse_error(self) -> Any:
        """Raise the error in the reply; Libcloud would raise its own error with whatever is returned here."""
        error = self._error()
        code, message = str(error["code"]), str(error["message"])
        if code == "unauthorized" or self.status == HTTPStatus.UNAUTHORIZED:
            raise HetznerUnauthorizedError(message, driver=self.connection.driver)
        if code == "rate_limit_exceeded" or self.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise HetznerRateLimitError(message, self.headers)
        raise HetznerError(code, message, status=self.status, details=error.get("details"), headers=self.headers)

    def _error(self) -> Mapping[str, Any]:
        try:
            error = json.loads(self.body)["error"]
            return {"details": None, **error, "code": error["code"], "message": error["message"]}
        except (ValueError, KeyError, TypeError):
            # A proxy in between answered, with a page of its own.
            start = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", self.body)).strip()[:200]
            return {"code": f"http_{self.status}", "message": f"HTTP {self.status} {self.error}: {start}"}


class _Connection(ConnectionKey):  # type: ignore[misc]
    """HTTPS with a bearer token."""

    host = "api.hetzner.cloud"
    responseCls = _Response  # noqa: N815  # Libcloud's name

    def add_default_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return {**headers, "Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}


class HetznerNodeDriver(NodeDriver):  # type: ignore[misc]
    """Servers, their types, images, locations, keys, firewalls and actions of one project.

    Parameters
    ----------
    key
        The project's API token, with read and write permission.
    url
        Where the API is.
    timeout
        Seconds for one call.
    """

    name = "Hetzner Cloud"
    website = "https://www.hetzner.com/cloud"
    type = "hetzner"
    api_name = "hetzner"
    connectionCls = _Connection  # noqa: N815  # Libcloud's name
    features: ClassVar[dict[str, list[str]]] = {"create_node": ["ssh_key"]}

    NODE_STATE_MAP: ClassVar[dict[str, str]] = {
        "initializing": NodeState.PENDING,
        "starting": NodeState.STARTING,
        "running": NodeState.RUNNING,
        "stopping": NodeState.STOPPING,
        "off": NodeState.STOPPED,
        "deleting": NodeState.STOPPING,  # it still exists, and is still billed
        "migrating": NodeState.MIGRATING,
        "rebuilding": NodeState.RECONFIGURING,
        "unknown": NodeState.UNKNOWN,
    }

    def __init__(self, key: str, *, url: str = API, timeout: float = 60.0, **kwargs: Any) -> None:
        if not key:
            raise HetznerUnauthorizedError("no API token was given")
        self._url = url.rstrip("/")
        super().__init__(key, timeout=timeout, **kwargs)

    def _ex_connection_class_kwargs(self) -> dict[str, Any]:
        return {"url": self._url}

    # Servers

    def list_nodes(self, ex_label_selector: str | None = None, ex_name: str | None = None) -> list[Node]:
        """List servers in any state, all or those that match a selector such as "app=web,!old"."""
        found = self._all("/servers", "servers", label_selector=ex_label_selector, name=ex_name)
        return [self._to_node(server) for server in found]

    def ex_get_node(self, node_id: str) -> Node:
        """Return one server; `HetznerError` with the code "not_found" if there is none."""
        return self._to_node(self._call("GET", f"/servers/{node_id}")["server"])

    def create_node(
        self,
        name: str,
        size: NodeSize | str,
        image: NodeImage | str,
        location: NodeLocation | str | None = None,
        auth: Any = None,
        *,
        ex_user_data: str | None = None,
        ex_ssh_keys: Sequence[KeyPair | str | int] = (),
        ex_labels: Mapping[str, str] | None = None,
        ex_firewalls: Sequence[str | int] = (),
        ex_ipv4: bool = True,
        ex_ipv6: bool = True,
        ex_start: bool = True,
    ) -> Node:
        """Order a server; it exists at once and starts in the background (``extra["actions"]``).

        Without any key the API sets a root password, mails it to the owner and returns it
        (``extra["root_password"]``); a key of the project avoids that, even if user data already contains the keys.

        Parameters
        ----------
        name
            A host name, unique in the project.
        size, image, location
            Objects of this driver, or names. An image's name means the one for the size's architecture. Without a
            location the API chooses.
        auth
            A `NodeAuthSSHKey`, which must be in the project already (`import_key_pair_from_string`).
        ex_user_data
            For cloud-init, at most 32 KiB.
        ex_ssh_keys
            Keys of the project for root: key pairs, names or ids.
        ex_firewalls
            Ids; they apply from the first packet on.
        """
        if ex_user_data is not None and len(ex_user_data.encode()) > USER_DATA_LIMIT:
            raise ValueError(
                f"user data of {len(ex_user_data.encode())} bytes for server {name}: "
                f"Hetzner takes at most {USER_DATA_LIMIT}, so let the server fetch the rest"
            )
        order: dict[str, Any] = {
            "name": name,
            "server_type": getattr(size, "id", size),
            "image": getattr(image, "id", image),
            "location": getattr(location, "id", location),
            "ssh_keys": [self._key_id(key) for key in ex_ssh_keys] + self._ids_of(auth),
            "user_data": ex_user_data,
            "labels": dict(ex_labels or {}),
            "firewalls": [{"firewall": int(firewall)} for firewall in ex_firewalls],
            "public_net": {"enable_ipv4": ex_ipv4, "enable_ipv6": ex_ipv6},
            "start_after_create": ex_start,
        }
        answer = self._call("POST", "/servers", {k: v for k, v in order.items() if v is not None})
        node = self._to_node(answer["server"])
        node.extra["actions"] = [action["id"] for action in [answer["action"], *answer["next_actions"]]]
        node.extra["root_password"] = answer["root_password"]
        return node

    def destroy_node(self, node: Node | str) -> bool:
        """Delete a server with its primary addresses. Fails as "locked" while it is being created: retry."""
        self._call("DELETE", f"/servers/{getattr(node, 'id', node)}")
        return True

    # Types, images, locations

    def list_sizes(self, location: NodeLocation | str | None = None) -> list[NodeSize]:
        """List server types, with the price in the location, or the lowest anywhere without one.

        Those that can no longer be ordered in the location are left out; ``extra["locations"]`` says of each location
        whether the type is available there at the moment.
        """
        place = getattr(location, "id", location)
        sizes = [self._to_size(kind, place) for kind in self._all("/server_types", "server_types")]
        return [size for size in sizes if place is None or place in size.extra["locations"]]

    def list_images(
        self,
        location: Any = None,
        *,
        ex_type: str | None = "system",
        ex_architecture: str | None = None,
        ex_name: str | None = None,
        ex_label_selector: str | None = None,
    ) -> list[NodeImage]:
        """List images, the same in all locations. `ex_type`: "system", "snapshot", "backup", "app" or None for all."""
        found = self._all(
            "/images",
            "images",
            type=ex_type,
            architecture=ex_architecture,
            name=ex_name,
            label_selector=ex_label_selector,
        )
        return [self._to_image(image) for image in found]

    def get_image(self, image_id: str) -> NodeImage:
        """Return one image by its id."""
        return self._to_image(self._call("GET", f"/images/{image_id}")["image"])

    def list_locations(self) -> list[NodeLocation]:
        """List the locations of servers."""
        return [
            NodeLocation(
                id=place["name"],
                name=f"{place['city']} ({place['description']})",
                country=place["country"],
                driver=self,
                extra={"id": place["id"], "network_zone": place["network_zone"]},
            )
            for place in self._all("/locations", "locations")
        ]

    def ex_get_currency(self) -> str:
        """Return the currency of all prices, such as "EUR"."""
        return str(self._call("GET", "/pricing")["pricing"]["currency"])

    # Keys

    def list_key_pairs(self, ex_label_selector: str | None = None) -> list[KeyPair]:
        """List public keys of the project."""
        found = self._all("/ssh_keys", "ssh_keys", label_selector=ex_label_selector)
        return [self._to_key_pair(key) for key in found]

    def get_key_pair(self, name: str) -> KeyPair:
        """Return one key by its name."""
        for key in self._all("/ssh_keys", "ssh_keys", name=name):
            return self._to_key_pair(key)
        raise KeyPairDoesNotExistError(name, self)

    def import_key_pair_from_string(
        self, name: str, key_material: str, ex_labels: Mapping[str, str] | None = None
    ) -> KeyPair:
        """Add a public key; "uniqueness_error" if its name or the key itself already exists."""
        order = {"name": name, "public_key": key_material, "labels": dict(ex_labels or {})}
        return self._to_key_pair(self._call("POST", "/ssh_keys", order)["ssh_key"])

    def delete_key_pair(self, key_pair: KeyPair) -> bool:
        """Delete a key; servers that have it keep it."""
        self._call("DELETE", f"/ssh_keys/{key_pair.extra['id']}")
        return True

    # Firewalls

    def ex_list_firewalls(self, label_selector: str | None = None) -> list[dict[str, Any]]:
        """List firewalls as the API describes them ("id", "name", "labels", "rules", "applied_to")."""
        return list(self._all("/firewalls", "firewalls", label_selector=label_selector))

    def ex_create_firewall(
        self, name: str, *, sources: Sequence[str], labels: Mapping[str, str] | None = None, port: str = "22"
    ) -> dict[str, Any]:
        """Create a firewall that allows only TCP to one port from some networks, such as "192.0.2.7/32".

        Outgoing traffic, and replies to it, are not restricted.
        """
        rule = {"direction": "in", "protocol": "tcp", "port": port, "source_ips": list(sources)}
        order = {"name": name, "labels": dict(labels or {}), "rules": [rule]}
        answer: dict[str, Any] = self._call("POST", "/firewalls", order)["firewall"]
        return answer

    def ex_delete_firewall(self, firewall_id: str | int) -> bool:
        """Delete a firewall; "resource_in_use", which is transient, until its servers are gone."""
        self._call("DELETE", f"/firewalls/{firewall_id}")
        return True

    # Actions

    def ex_get_actions(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the state of actions: "status" (running, success, error), "progress", "error" and more."""
        return list(self._all("/actions", "actions", id=list(ids))) if ids else []

    def ex_wait_for_actions(self, ids: Iterable[int], *, timeout: float = 120.0, interval: float = 1.0) -> None:
        """Wait until all actions have succeeded.

        Raises
        ------
        HetznerError
            One has failed; the code and message are the action's.
        TimeoutError
            Some are still running.
        """
        waiting = list(ids)
        deadline = time.monotonic() + timeout
        while True:
            actions = self.ex_get_actions(waiting)
            for action in actions:
                if action["status"] == "error":
                    error = action["error"]
                    text = f"{action['command']} failed: {error['message']}"
                    raise HetznerError(error["code"], text, details=error.get("details"))
            waiting = [action["id"] for action in actions if action["status"] == "running"]
            if not waiting:
                return
            if time.monotonic() + interval > deadline:
                commands = ", ".join(f"{a['command']} {a['progress']} %" for a in actions if a["id"] in waiting)
                raise TimeoutError(f"not done within {timeout:g} s: {commands}")
            time.sleep(interval)

    # Calls

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        chosen = {k: v for k, v in params.items() if v is not None}
        data = None if body is None else json.dumps(body)
        answer = self.connection.request(path, params=chosen, data=data, method=method).object
        if method == "DELETE" and not answer:
            return {}  # 204
        if not isinstance(answer, dict):
            raise MalformedResponseError(f"{method} {path} returned no JSON object", body=answer, driver=self)
        return answer

    def _all(self, path: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Fetch all pages of a list."""
        page: int | None = 1
        while page is not None:
            answer = self._call("GET", path, page=page, per_page=_PER_PAGE, **params)
            yield from answer[key]
            page = answer["meta"]["pagination"]["next_page"]

    def _ids_of(self, auth: Any) -> list[int]:
        """Find the project's key for `auth`; the API accepts only keys that it knows."""
        if auth is None:
            return []
        wanted = auth.pubkey.split()[:_KEY_BODY]
        for key in self.list_key_pairs():
            if key.public_key.split()[:_KEY_BODY] == wanted:
                return [key.extra["id"]]
        raise KeyPairDoesNotExistError(" ".join(wanted), self)

    @staticmethod
    def _key_id(key: KeyPair | str | int) -> str | int:
        found: str | int = key.extra["id"] if isinstance(key, KeyPair) else key
        return found

    # Conversions

    def _to_node(self, server: Mapping[str, Any]) -> Node:
        net = server["public_net"]
        kept = ("status", "labels", "locked", "created", "private_net", "primary_disk_size")
        extra = {word: server.get(word) for word in kept}
        extra["server_type"] = server["server_type"]["name"]
        # Newer replies have the location itself, older ones the data center.
        place = server.get("location") or (server.get("datacenter") or {}).get("location") or {}
        extra["location"] = place.get("name")
        extra["ipv6"] = net["ipv6"]["ip"] if net.get("ipv6") else None
        extra["firewalls"] = [firewall["id"] for firewall in net.get("firewalls", [])]
        image = server.get("image")
        return Node(
            id=str(server["id"]),
            name=server["name"],
            state=self.NODE_STATE_MAP.get(server["status"], NodeState.UNKNOWN),
            public_ips=[net["ipv4"]["ip"]] if net.get("ipv4") else [],
            private_ips=[private["ip"] for private in server.get("private_net", [])],
            driver=self,
            size=self._to_size(server["server_type"], extra["location"]),
            image=None if image is None else self._to_image(image),
            extra=extra,
            created_at=datetime.fromisoformat(server["created"]),
        )

    def _to_size(self, kind: Mapping[str, Any], location: str | None) -> NodeSize:
        prices = {
            price["location"]: {
                "net": float(price["price_hourly"]["net"]),
                "gross": float(price["price_hourly"]["gross"]),
            }
            for price in kind["prices"]
        }
        gross = {place: price["gross"] for place, price in prices.items()}
        extra = {
            "id": kind["id"],
            "description": kind["description"],
            "category": kind.get("category"),
            "vcpus": kind["cores"],
            "cpu_type": kind["cpu_type"],
            "architecture": kind["architecture"],
            "storage_type": kind["storage_type"],
            "prices": prices,
            "locations": _open_locations(kind),
        }
        return NodeSize(
            id=kind["name"],
            name=kind["name"],
            ram=int(float(kind["memory"]) * 1024),
            disk=kind["disk"],
            bandwidth=None,
            price=gross.get(location) if location is not None else min(gross.values(), default=None),
            driver=self,
            extra=extra,
        )

    def _to_image(self, image: Mapping[str, Any]) -> NodeImage:
        kept = ("type", "status", "description", "os_flavor", "os_version", "architecture", "disk_size", "deprecation")
        return NodeImage(
            id=str(image["id"]),
            name=image["name"] or image["description"],  # only system images have names
            driver=self,
            extra={word: image.get(word) for word in (*kept, "labels")},
        )

    def _to_key_pair(self, key: Mapping[str, Any]) -> KeyPair:
        return KeyPair(
            name=key["name"],
            public_key=key["public_key"],
            fingerprint=key["fingerprint"],
            driver=self,
            extra={"id": key["id"], "labels": key["labels"], "created": key["created"]},
        )


def _open_locations(kind: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Locations in which a server type can be ordered -> {"available", "recommended", "deprecation"}."""
    if "locations" not in kind:  # older replies have one deprecation for all locations
        places = [{"name": price["location"], "deprecation": kind.get("deprecation")} for price in kind["prices"]]
    else:
        places = kind["locations"]
    now = time.time()
    found = {}
    for place in places:
        deprecation = place.get("deprecation")
        if deprecation and datetime.fromisoformat(deprecation["unavailable_after"]).timestamp() <= now:
            continue
        found[place["name"]] = {
            "available": place.get("available", True),
            "recommended": place.get("recommended"),
            "deprecation": deprecation,
        }
    return found


def _field_messages(details: Any) -> str:
    """Say what is wrong with which field, as far as the details show it."""
    fields = details.get("fields") if isinstance(details, dict) else None
    texts = [f"{field['name']}: {' '.join(field.get('messages') or [])}".rstrip(": ") for field in fields or []]
    return f" [{'; '.join(texts)}]" if texts else ""


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text or "")
    except ValueError:
        return otherwise
