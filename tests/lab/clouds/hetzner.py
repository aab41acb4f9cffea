"""Hetzner Cloud's API, version 1, as far as its own client and ours go, with hosts of the lab as servers.

Servers with their actions, types, images, locations, SSH keys, firewalls and primary addresses. No volumes, networks,
snapshots or load balancers. Where the vendor's documents do not tell a status or a text, they are as people have shown
them in public.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import flask

from .cloud import Cloud
from .cloud_init import boot_image
from .hetzner_catalogue import PLACES, SOLD_OUT, TYPES, VAT, images, location, server_type
from .machines import Boot, Machines
from .public_key import fingerprint

__all__ = ["Hetzner"]

_LIMIT = 3600
_PER_PAGE, _MAX_PER_PAGE = 25, 50
_USER_DATA_LIMIT = 32 * 1024
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", re.IGNORECASE)
_LABEL_VALUE = re.compile(r"([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?", re.IGNORECASE)
_TERM = re.compile(
    r"\s*(?P<key>[^\s=!,()]+)\s*(?:(?P<op>==?|!=)\s*(?P<value>[^\s,]*)|(?P<set>(?:not)?in)\s*\((?P<values>[^)]*)\))?\s*"
)

_IPV4_PRICE = 0.0008


class Refusal(Exception):
    """What the API answers instead of doing what was asked."""

    def __init__(self, status: int, code: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details


def _invalid(name: str, message: str) -> Refusal:
    details = {"fields": [{"name": name, "messages": [message]}]}
    return Refusal(422, "invalid_input", f"invalid input in field '{name}'", details)


@dataclass
class _Server:
    id: int
    data: dict[str, Any]
    visible_from: float
    made_at: float
    create: dict[str, Any]
    start: dict[str, Any] | None = None
    boot: Boot | None = None
    powered: bool = False
    addresses: list[int] = field(default_factory=list)


class Hetzner(Cloud):
    """The API at ``url + "/v1"``, for one project.

    Attributes
    ----------
    token
        What it lets in.
    limit
        How many servers the project may have.
    creation
        Seconds that a new server is "initializing", and locked.
    """

    token = "hetzner-lab-token"

    def __init__(self, machines: Machines | None = None, *, limit: int = 100, creation: float = 0.1) -> None:
        self.limit = limit
        self.creation = creation
        self._ids = itertools.count(4711)
        self._servers: dict[int, _Server] = {}
        self._keys: dict[int, dict[str, Any]] = {}
        self._firewalls: dict[int, dict[str, Any]] = {}
        self._addresses: dict[int, dict[str, Any]] = {}
        self._actions: dict[int, dict[str, Any]] = {}
        self._endings: list[threading.Thread] = []
        super().__init__(machines)
        self.api = self.url + "/v1"

    def close(self) -> None:
        """As the frame's; also waits for servers that are being deleted."""
        super().close()
        for ending in self._endings:
            ending.join()

    def boot_of(self, id: int | str) -> Boot:
        """The machine behind a server."""
        boot = self._servers[int(id)].boot
        assert boot is not None, f"server {id} has no machine"
        return boot

    def routes(self) -> None:
        """Add all routes."""
        app = self.app
        app.before_request(self._gate)
        app.after_request(self._rate_headers)
        app.register_error_handler(Refusal, self._refuse)
        app.register_error_handler(404, lambda _: self._refuse(Refusal(404, "not_found", "route not found")))
        lists: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "servers": self._shown_servers,
            "ssh_keys": self._keys.values,
            "firewalls": self._shown_firewalls,
            "primary_ips": self._addresses.values,
            "locations": lambda: [location(name) for name in PLACES],
            "server_types": lambda: [server_type(name) for name in TYPES],
            "images": images,
            "actions": self._actions.values,
        }
        for word, items in lists.items():
            app.get(f"/v1/{word}", endpoint=f"list {word}")(self._lister(word, items))
            app.get(f"/v1/{word}/<int:id>", endpoint=f"get {word}")(self._getter(word, items))
        app.get("/v1/pricing")(lambda: {"pricing": {"currency": "EUR", "vat_rate": "19.000000"}})
        app.post("/v1/servers")(self._create_server)
        app.delete("/v1/servers/<int:id>")(self._delete_server)
        app.post("/v1/servers/<int:id>/actions/<command>")(self._power)
        app.post("/v1/ssh_keys")(self._create_key)
        app.delete("/v1/ssh_keys/<int:id>")(self._delete_key)
        app.post("/v1/firewalls")(self._create_firewall)
        app.delete("/v1/firewalls/<int:id>")(self._delete_firewall)
        app.delete("/v1/primary_ips/<int:id>")(self._delete_address)

    # Before and after every call

    def _gate(self) -> Any:
        with self.lock:
            for server in self._servers.values():
                self._move_on(server)
        if (page := self.faults.take("html")) is not None:
            text = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return flask.Response(text, int(page.get("status", 502)), content_type="text/html")
        if self.faults.take("server_error") is not None:
            raise Refusal(500, "service_error", "Service Error")
        given = flask.request.headers.get("Authorization", "")
        wrong = any(self.faults.take(name) is not None for name in ("bad_credentials", "token_expired"))
        if wrong or given != f"Bearer {self.token}":
            raise Refusal(401, "unauthorized", "unable to authenticate")
        if (throttle := self.faults.take("throttle")) is not None:
            flask.g.reset = time.time() + float(throttle.get("wait", 1))
            raise Refusal(429, "rate_limit_exceeded", f"limit of {_LIMIT} requests per hour reached")
        return None

    def _rate_headers(self, response: flask.Response) -> flask.Response:
        reset = flask.g.get("reset")
        response.headers["RateLimit-Limit"] = str(_LIMIT)
        response.headers["RateLimit-Remaining"] = str(_LIMIT - 1 if reset is None else 0)
        response.headers["RateLimit-Reset"] = str(math.ceil(reset or time.time()))
        response.headers["X-Correlation-Id"] = f"{len(self.requests):016x}"
        return response

    def _refuse(self, refusal: Refusal) -> Any:
        error = {"code": refusal.code, "message": refusal.message, "details": refusal.details}
        return {"error": error}, refusal.status

    # Lists

    def _lister(self, word: str, items: Callable[[], Iterable[dict[str, Any]]]) -> Callable[[], Any]:
        def answer() -> Any:
            with self.lock:
                found = _sorted([item for item in items() if _wanted(word, item)])
            return _page(word, found)

        return answer

    def _getter(self, word: str, items: Callable[[], Iterable[dict[str, Any]]]) -> Callable[[int], Any]:
        def answer(id: int) -> Any:
            with self.lock:
                return {_singular(word): _find(items(), id, word)}

        return answer

    def _shown_servers(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [server.data for server in self._servers.values() if now >= server.visible_from]

    def _shown_firewalls(self) -> list[dict[str, Any]]:
        shown = []
        for firewall in self._firewalls.values():
            uses = [{"type": "server", "server": {"id": id}} for id in self._users_of(firewall["id"])]
            shown.append({**firewall, "applied_to": uses})
        return shown

    def _users_of(self, firewall: int) -> list[int]:
        servers = self._servers.values()
        return [s.id for s in servers if firewall in [used["id"] for used in s.data["public_net"]["firewalls"]]]

    # Actions

    def _act(self, command: str, resources: Mapping[str, int], *, status: str = "running") -> dict[str, Any]:
        action = {
            "id": next(self._ids),
            "command": command,
            "status": "running",
            "progress": 0,
            "started": _now(),
            "finished": None,
            "resources": [{"id": id, "type": kind} for kind, id in resources.items()],
            "error": None,
        }
        self._actions[action["id"]] = action
        if status != "running":
            _finish(action)
        return action

    # Servers

    def _create_server(self) -> Any:
        order = _body()
        with self.lock:
            data, keys = self._checked(order)
            if (
                self.faults.take("no_capacity") is not None
                or (data["server_type"]["name"], data["location"]["name"]) in SOLD_OUT
            ):
                raise Refusal(412, "resource_unavailable", "error during placement")
            if self.faults.take("quota") is not None or len(self._servers) >= self.limit:
                raise Refusal(
                    403, "resource_limit_exceeded", "server limit exceeded", {"limits": [{"name": "server_limit"}]}
                )
            server = self._place(data, order, keys)
        if server.boot is not None:
            address = server.boot.wait_for_address()
            with self.lock:
                if server in self._servers.values():  # it may have been deleted meanwhile
                    data["public_net"]["ipv4"] = self._own_address(server, address, order)
        reply = {
            "server": dict(data),
            "action": dict(server.create),
            "next_actions": [] if server.start is None else [dict(server.start)],
            "root_password": None if keys else "aB3dE5fG7hJ9",
        }
        if self.faults.take("lost_reply") is not None:
            self.lose_reply()
        return reply, 201

    def _checked(self, order: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The server as it would be, and its keys; or the refusal of what was asked."""
        name = order.get("name")
        if not isinstance(name, str) or not _HOST_NAME.fullmatch(name):
            raise _invalid("name", "must be a valid hostname as per RFC 1123")
        if any(server.data["name"] == name for server in self._servers.values()):
            details = {"fields": [{"name": "name"}]}
            raise Refusal(409, "uniqueness_error", "server name is already used", details)
        user_data = order.get("user_data", "")
        if len(user_data.encode()) > _USER_DATA_LIMIT:
            raise _invalid("user_data", f"Length must be at most {_USER_DATA_LIMIT}.")
        kind = _named(map(server_type, TYPES), order.get("server_type"), "server_type")
        place = self._place_for(kind, order.get("location"))
        fitting = [image for image in images() if image["architecture"] == kind["architecture"]]
        image = _named(fitting, order.get("image"), "image")
        keys = [_named(self._keys.values(), key, "ssh_keys") for key in order.get("ssh_keys", [])]
        firewalls = [used["firewall"] for used in order.get("firewalls", [])]
        for firewall in firewalls:
            _named(self._firewalls.values(), firewall, "firewalls")
        data = {
            "id": next(self._ids),
            "name": name,
            "status": "initializing",
            "created": _now(),
            "public_net": {
                "ipv4": None,
                "ipv6": None,
                "floating_ips": [],
                "firewalls": [{"id": firewall, "status": "applied"} for firewall in firewalls],
            },
            "private_net": [],
            "server_type": kind,
            "location": place,
            "image": image,
            "iso": None,
            "rescue_enabled": False,
            "locked": True,
            "backup_window": None,
            "outgoing_traffic": None,
            "ingoing_traffic": None,
            "included_traffic": 20 * 1024**4,
            "protection": {"delete": False, "rebuild": False},
            "labels": _labels(order),
            "volumes": [],
            "load_balancers": [],
            "primary_disk_size": kind["disk"],
            "placement_group": None,
        }
        return data, keys

    @staticmethod
    def _place_for(kind: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
        """Where the server goes: where it was asked for, or where the type is offered first."""
        now = _now()
        gone = [
            p["deprecation"] is not None and p["deprecation"]["unavailable_after"] <= now for p in kind["locations"]
        ]
        offered = [p["name"] for p, retired in zip(kind["locations"], gone, strict=True) if not retired]
        if wanted is None and offered:
            wanted = offered[0]
        found: dict[str, Any] = _named(map(location, PLACES), wanted or next(iter(PLACES)), "location")
        if found["name"] not in offered:
            raise Refusal(422, "invalid_input", "unsupported location for server type")
        return found

    def _place(self, data: dict[str, Any], order: Mapping[str, Any], keys: list[dict[str, Any]]) -> _Server:
        """Start it; from here on it exists, and is billed."""
        id = data["id"]
        eventual = self.faults.take("eventual")
        hidden = 0.0 if eventual is None else float(eventual.get("seconds", 1.0))
        now = time.monotonic()
        server = _Server(id, data, now + hidden, now + self.creation, self._act("create_server", {"server": id}))
        self._servers[id] = server
        price = next(p for p in data["server_type"]["prices"] if p["location"] == data["location"]["name"])
        self.meter.begin("instance", str(id), float(price["price_hourly"]["gross"]))
        net = order.get("public_net", {})
        if net.get("enable_ipv6", True):
            data["public_net"]["ipv6"] = {"id": 0, "ip": f"2001:db8:{id:x}::/64", "blocked": False, "dns_ptr": []}
            data["public_net"]["ipv6"]["id"] = self._bought_address(server, "ipv6", f"2001:db8:{id:x}::/64", 0.0)
        if self.faults.take("fails_to_start") is not None:
            _finish(server.create, {"code": "action_failed", "message": "Action failed"})
            data.update(status="off", locked=False)
        elif order.get("start_after_create", True):
            server.start = self._act("start_server", {"server": id})
            server.boot = boot_image(
                self.machines,
                self.faults,
                order.get("user_data", ""),
                public_keys=[key["public_key"] for key in keys],
                hostname=data["name"],
                on_power=lambda: self._powered(server),
            )
        return server

    def _own_address(self, server: _Server, address: str, order: Mapping[str, Any]) -> dict[str, Any] | None:
        if not order.get("public_net", {}).get("enable_ipv4", True):
            return None
        id = self._bought_address(server, "ipv4", address, _IPV4_PRICE * VAT)
        return {"id": id, "ip": address, "blocked": False, "dns_ptr": f"static.{address}.clients.your-server.de"}

    def _bought_address(self, server: _Server, kind: str, address: str, price: float) -> int:
        id = next(self._ids)
        self._addresses[id] = {
            "id": id,
            "name": f"primary_ip-{id}",
            "type": kind,
            "ip": address,
            "location": server.data["location"],
            "assignee_id": server.id,
            "assignee_type": "server",
            "auto_delete": True,
            "blocked": False,
            "created": _now(),
            "dns_ptr": [],
            "labels": {},
            "protection": {"delete": False},
        }
        server.addresses.append(id)
        self.meter.begin("primary ip", str(id), price)
        return id

    def _powered(self, server: _Server) -> None:
        with self.lock:
            server.powered = True

    def _move_on(self, server: _Server) -> None:
        """Bring its state up to date: initializing, starting (or off), running."""
        data, start = server.data, server.start
        if server.create["status"] == "running" and time.monotonic() >= server.made_at:
            _finish(server.create)
            data.update(status="off" if start is None else "starting", locked=False)
        if data["status"] == "starting" and server.powered and start is not None:
            data["status"] = "running"
            _finish(start)

    def _power(self, id: int, command: str) -> Any:
        words = {
            "poweron": "start_server",
            "poweroff": "stop_server",
            "shutdown": "shutdown_server",
            "reboot": "reboot_server",
        }
        if command not in words:
            raise Refusal(404, "not_found", "route not found")
        with self.lock:
            server = self._servers[_find(self._shown_servers(), id, "servers")["id"]]
            if server.data["locked"]:
                raise Refusal(423, "locked", "server is locked")
            host = None if server.boot is None else server.boot.host
            action = self._act(words[command], {"server": id}, status="success")
            server.data["status"] = "off" if command in {"poweroff", "shutdown"} else "running"
        if host is not None:
            host.kill() if server.data["status"] == "off" else host.restart()
        return {"action": action}, 201

    def _delete_server(self, id: int) -> Any:
        with self.lock:
            server = self._servers[_find(self._shown_servers(), id, "servers")["id"]]
            if server.data["locked"]:
                raise Refusal(423, "locked", "server is locked")
            server.data.update(status="deleting", locked=True)
            action = self._act("delete_server", {"server": id})
            ending = threading.Thread(target=self._end, args=(server, action), name=f"hetzner-end-{id}")
            self._endings.append(ending)
            reply = {"action": dict(action)}
        ending.start()
        return reply, 200

    def _end(self, server: _Server, action: dict[str, Any]) -> None:
        if server.boot is not None:
            self.machines.end(server.boot)
        with self.lock:
            del self._servers[server.id]
            self.meter.end("instance", str(server.id))
            for address in server.addresses:
                self._addresses.pop(address, None)
                self.meter.end("primary ip", str(address))
            _finish(action)

    # Keys, firewalls, addresses

    def _create_key(self) -> Any:
        order = _body()
        name, public_key = order.get("name"), order.get("public_key", "")
        if not name:
            raise _invalid("name", "Missing data for required field.")
        try:
            mark = fingerprint(public_key)
        except ValueError:
            raise _invalid("public_key", "SSH key is invalid") from None
        with self.lock:
            for key in self._keys.values():
                for word, value in (("name", name), ("fingerprint", mark)):
                    if key[word] == value:
                        details = {"fields": [{"name": "name" if word == "name" else "public_key"}]}
                        raise Refusal(409, "uniqueness_error", "SSH key not unique", details)
            id = next(self._ids)
            key = {"id": id, "name": name, "fingerprint": mark, "public_key": public_key}
            self._keys[id] = {**key, "labels": _labels(order), "created": _now()}
            self.meter.begin("key", str(id))
            return {"ssh_key": self._keys[id]}, 201

    def _delete_key(self, id: int) -> Any:
        with self.lock:
            _find(self._keys.values(), id, "ssh_keys")
            del self._keys[id]
            self.meter.end("key", str(id))
        return "", 204

    def _create_firewall(self) -> Any:
        order = _body()
        name = order.get("name")
        if not name:
            raise _invalid("name", "Missing data for required field.")
        for number, rule in enumerate(order.get("rules", [])):
            if rule.get("protocol") in {"tcp", "udp"} and "port" not in rule:
                raise _invalid(f"rules.{number}.port", "port is required for tcp and udp")
            if rule.get("direction") == "in" and not rule.get("source_ips"):
                raise _invalid(f"rules.{number}.source_ips", "source_ips is required for direction in")
        with self.lock:
            if any(firewall["name"] == name for firewall in self._firewalls.values()):
                details = {"fields": [{"name": "name"}]}
                raise Refusal(409, "uniqueness_error", "firewall name is already used", details)
            id = next(self._ids)
            rules = [{"description": None, "destination_ips": [], "port": None, **r} for r in order.get("rules", [])]
            self._firewalls[id] = {"id": id, "name": name, "labels": _labels(order), "created": _now(), "rules": rules}
            self.meter.begin("firewall", str(id))
            action = self._act("set_firewall_rules", {"firewall": id}, status="success")
            return {"firewall": {**self._firewalls[id], "applied_to": []}, "actions": [action]}, 201

    def _delete_firewall(self, id: int) -> Any:
        with self.lock:
            _find(self._firewalls.values(), id, "firewalls")
            if self._users_of(id):
                raise Refusal(422, "resource_in_use", f"firewall with ID '{id}' is still in use")
            del self._firewalls[id]
            self.meter.end("firewall", str(id))
        return "", 204

    def _delete_address(self, id: int) -> Any:
        with self.lock:
            _find(self._addresses.values(), id, "primary_ips")
            raise Refusal(422, "resource_in_use", "primary ip is assigned to a server")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _body() -> dict[str, Any]:
    body = flask.request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise Refusal(400, "json_error", "invalid JSON input in your request")
    return body


def _finish(action: dict[str, Any], error: dict[str, str] | None = None) -> None:
    action.update(status="success" if error is None else "error", progress=100, finished=_now(), error=error)


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _find(items: Iterable[dict[str, Any]], id: int, word: str) -> dict[str, Any]:
    for item in items:
        if item["id"] == id:
            return item
    raise Refusal(404, "not_found", f"{_singular(word)} with ID '{id}' not found")


def _named(items: Iterable[dict[str, Any]], wanted: Any, word: str) -> dict[str, Any]:
    """The item with a name or id, for a field of an order."""
    for item in items:
        if wanted is not None and str(wanted) in {str(item["id"]), item.get("name")}:
            return item
    raise _invalid(word, "Missing data for required field." if wanted is None else f"{wanted} not found")


def _labels(order: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = order.get("labels") or {}
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise _invalid("labels", f"invalid label {key}={value}")
    return labels


def _selected(labels: Mapping[str, str], selector: str) -> bool:
    """Whether a label selector, all of whose terms must hold, chooses these labels."""
    for term in re.split(r",(?![^()]*\))", selector):
        absent = term.strip().startswith("!")
        parts = _TERM.fullmatch(term.strip().removeprefix("!"))
        if parts is None:
            raise _invalid("label_selector", f"can't parse {term!r}")
        value = labels.get(parts["key"])
        if parts["op"]:
            holds = (value == parts["value"]) == (parts["op"] != "!=")
        elif parts["set"]:
            holds = (value in [text.strip() for text in parts["values"].split(",")]) == (parts["set"] == "in")
        else:
            holds = (value is None) == absent
        if not holds:
            return False
    return True


def _wanted(word: str, item: Mapping[str, Any]) -> bool:
    """Whether the query's filters let an item through."""
    query = flask.request.args
    for name in ("name", "status", "architecture", "type", "fingerprint", "ip", "id"):
        if (values := query.getlist(name)) and str(item.get(name)) not in values:
            return False
    if (selector := query.get("label_selector")) and not _selected(item.get("labels", {}), selector):
        return False
    if word == "actions" and not query.getlist("id"):
        raise _invalid("id", "Missing data for required field.")
    return True


def _sorted(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for order in reversed(flask.request.args.getlist("sort")):
        word, _, direction = order.partition(":")
        if items and word not in items[0]:
            raise _invalid("sort", f"can't sort by {word}")
        items = sorted(items, key=lambda item: str(item[word]), reverse=direction == "desc")
    return items


def _page(word: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        page = int(flask.request.args.get("page", 1))
        size = int(flask.request.args.get("per_page", _PER_PAGE))
    except ValueError:
        raise _invalid("page", "Not a valid integer.") from None
    if page < 1 or not 1 <= size <= _MAX_PER_PAGE:
        raise _invalid("per_page", f"must be between 1 and {_MAX_PER_PAGE}")
    last = max(1, -(-len(items) // size))
    pagination = {
        "page": page,
        "per_page": size,
        "previous_page": page - 1 if page > 1 else None,
        "next_page": page + 1 if page < last else None,
        "last_page": last,
        "total_entries": len(items),
    }
    return {word: items[(page - 1) * size : page * size], "meta": {"pagination": pagination}}
