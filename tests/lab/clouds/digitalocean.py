"""DigitalOcean's API, version 2, as far as Libcloud's driver and a careful user go; droplets are hosts of the lab.

Droplets with their actions and tags, sizes, images, regions, SSH keys and the account. No volumes, snapshots, floating
addresses or firewalls.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import flask

from .cloud import Cloud
from .cloud_init import boot_image
from .machines import Boot, Machines
from .public_key import fingerprint

__all__ = ["DigitalOcean"]

_LIMIT = 5000
_PER_PAGE, _MAX_PER_PAGE = 20, 200
_USER_DATA_LIMIT = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,253}[A-Za-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9:_-]{1,255}")

_REGIONS = {
    "nyc1": ("New York 1", True),
    "nyc2": ("New York 2", False),
    "fra1": ("Frankfurt 1", True),
    "sgp1": ("Singapore 1", True),
}
_OPEN = tuple(slug for slug, (_, available) in _REGIONS.items() if available)
# slug: MB of memory, vCPUs, GB of disk, TB of traffic, dollars an hour, description, regions
_SIZES: dict[str, tuple[int, int, int, float, float, str, tuple[str, ...]]] = {
    "s-1vcpu-512mb-10gb": (512, 1, 10, 0.5, 0.00595, "Basic", _OPEN),
    "s-1vcpu-1gb": (1024, 1, 25, 1.0, 0.00893, "Basic", _OPEN),
    "s-2vcpu-4gb": (4096, 2, 80, 4.0, 0.03571, "Basic", _OPEN),
    "s-8vcpu-16gb": (16384, 8, 320, 6.0, 0.14286, "Basic", _OPEN),
    "c-4": (8192, 4, 50, 5.0, 0.125, "CPU-Optimized", ("nyc1", "fra1")),
    "c-32": (65536, 32, 400, 9.0, 1.0, "CPU-Optimized", ("nyc1",)),
    "gpu-h100x1-80gb": (245760, 20, 720, 15.0, 3.39, "H100 GPU", ("nyc1",)),
}
_IMAGES = (
    (155133621, "22.04 (LTS) x64", "Ubuntu", "ubuntu-22-04-x64"),
    (195932981, "24.04 (LTS) x64", "Ubuntu", "ubuntu-24-04-x64"),
    (194316736, "12 x64", "Debian", "debian-12-x64"),
)


class Refusal(Exception):
    """What the API answers instead of doing what was asked."""

    def __init__(self, status: int, id: str, message: str) -> None:
        super().__init__(message)
        self.status, self.id, self.message = status, id, message


def _unprocessable(message: str) -> Refusal:
    return Refusal(422, "unprocessable_entity", message)


def _not_found() -> Refusal:
    return Refusal(404, "not_found", "The resource you were accessing could not be found.")


@dataclass
class _Droplet:
    data: dict[str, Any]
    visible_from: float
    action: dict[str, Any]
    boot: Boot | None = None


class DigitalOcean(Cloud):
    """The API at ``url + "/v2"``, for one account.

    Attributes
    ----------
    token
        What it lets in.
    limit
        How many droplets the account may have.
    """

    token = "dop_v1_lab"

    def __init__(self, machines: Machines | None = None, *, limit: int = 100) -> None:
        self.limit = limit
        self._ids = itertools.count(533_000_001)
        self._droplets: dict[int, _Droplet] = {}
        self._keys: dict[int, dict[str, Any]] = {}
        self._actions: dict[int, dict[str, Any]] = {}
        super().__init__(machines)

    def boot_of(self, id: int | str) -> Boot:
        """The machine behind a droplet."""
        boot = self._droplets[int(id)].boot
        assert boot is not None, f"droplet {id} has no machine"
        return boot

    def routes(self) -> None:
        """Add all routes."""
        app = self.app
        app.before_request(self._gate)
        app.after_request(self._rate_headers)
        app.register_error_handler(Refusal, self._refuse)
        app.register_error_handler(404, lambda _: self._refuse(_not_found()))
        app.get("/v2/account")(self._account)
        lists: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "droplets": self._shown_droplets,
            "actions": self._actions.values,
            "regions": lambda: map(_region, _REGIONS),
            "sizes": lambda: map(_size, _SIZES),
            "images": _images,
        }
        for word, items in lists.items():
            app.get(f"/v2/{word}", endpoint=f"list {word}")(self._lister(word, items))
        app.get("/v2/account/keys", endpoint="list keys")(self._lister("ssh_keys", self._keys.values))
        app.get("/v2/account/keys/<wanted>", endpoint="get key")(lambda wanted: {"ssh_key": self._key(wanted)})
        app.post("/v2/account/keys")(self._create_key)
        app.delete("/v2/account/keys/<wanted>")(self._delete_key)
        app.get("/v2/images/<wanted>", endpoint="get image")(lambda wanted: {"image": _image(wanted)})
        app.get("/v2/actions/<int:number>", endpoint="get action")(lambda number: {"action": self._action(number)})
        app.get("/v2/droplets/<int:number>", endpoint="get droplet")(
            lambda number: {"droplet": self._shown(self._droplet(number))}
        )
        app.post("/v2/droplets")(self._create)
        app.delete("/v2/droplets")(self._delete_by_tag)
        app.delete("/v2/droplets/<int:number>")(self._delete)
        app.post("/v2/droplets/<int:number>/actions")(self._act_on)

    # Before and after every call

    def _gate(self) -> Any:
        if (page := self.faults.take("html")) is not None:
            text = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
            return flask.Response(text, int(page.get("status", 502)), content_type="text/html")
        if self.faults.take("server_error") is not None:
            raise Refusal(500, "server_error", "Unexpected server-side error")
        given = flask.request.headers.get("Authorization", "")
        wrong = any(self.faults.take(name) is not None for name in ("bad_credentials", "token_expired"))
        if wrong or given != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unable to authenticate you")
        if (throttle := self.faults.take("throttle")) is not None:
            flask.g.wait = float(throttle.get("wait", 1))
            raise Refusal(429, "too_many_requests", "API Rate limit exceeded.")
        return None

    def _rate_headers(self, response: flask.Response) -> flask.Response:
        wait = flask.g.get("wait")
        response.headers["ratelimit-limit"] = str(_LIMIT)
        response.headers["ratelimit-remaining"] = str(_LIMIT - 1 if wait is None else 0)
        response.headers["ratelimit-reset"] = str(math.ceil(time.time() + (wait or 0)))
        if wait is not None:
            response.headers["retry-after"] = str(math.ceil(wait))
        return response

    def _refuse(self, refusal: Refusal) -> Any:
        body = {"id": refusal.id, "message": refusal.message, "request_id": f"{len(self.requests):032x}"}
        return body, refusal.status

    def _lister(self, word: str, items: Callable[[], Iterable[dict[str, Any]]]) -> Callable[[], Any]:
        def answer() -> Any:
            tag, name, kind = (flask.request.args.get(key) for key in ("tag_name", "name", "type"))
            with self.lock:
                found = list(items())
            if word == "droplets":
                found = [d for d in found if tag in {None, *d["tags"]} and name in {None, d["name"]}]
            if word == "images" and kind == "application":
                found = []  # all of ours are plain systems
            return self._page(word, found)

        return answer

    def _page(self, word: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            page, size = (int(flask.request.args.get(*pair)) for pair in (("page", 1), ("per_page", _PER_PAGE)))
        except ValueError:
            raise Refusal(400, "bad_request", "page and per_page must be numbers.") from None
        size = min(max(size, 1), _MAX_PER_PAGE)
        last = max(1, -(-len(items) // size))
        others = {word: value for word, value in flask.request.args.items() if word not in {"page", "per_page"}}

        def link(number: int) -> str:
            return f"{self.url}{flask.request.path}?{urlencode({**others, 'page': number, 'per_page': size})}"

        pages = {}
        if page < last:
            pages |= {"next": link(page + 1), "last": link(last)}
        if page > 1:
            pages |= {"first": link(1), "prev": link(page - 1)}
        links = {"pages": pages} if pages else {}
        return {word: items[(page - 1) * size : page * size], "links": links, "meta": {"total": len(items)}}

    # Droplets

    def _account(self) -> Any:
        account = {"droplet_limit": self.limit, "email": "lab@example.com", "email_verified": True, "status": "active"}
        return {"account": {**account, "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef", "status_message": ""}}

    def _shown_droplets(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [self._shown(droplet) for droplet in self._droplets.values() if now >= droplet.visible_from]

    def _shown(self, droplet: _Droplet) -> dict[str, Any]:
        """The droplet as it is now: its addresses come a moment after its order."""
        boot = droplet.boot
        networks: dict[str, list[dict[str, Any]]] = {"v4": [], "v6": []}
        if boot is not None and (boot.host is not None or boot.state == "up"):
            private = f"10.136.0.{droplet.data['id'] % 250 + 2}"
            for address, mask, kind in ((private, "255.255.0.0", "private"), (boot.address, "255.255.255.0", "public")):
                gateway = address.rpartition(".")[0] + ".1"
                networks["v4"].append({"ip_address": address, "netmask": mask, "gateway": gateway, "type": kind})
        return {**droplet.data, "networks": networks}

    def _droplet(self, number: int) -> _Droplet:
        droplet = self._droplets.get(number)
        if droplet is None or time.monotonic() < droplet.visible_from:
            raise _not_found()
        return droplet

    def _action(self, number: int) -> dict[str, Any]:
        if number not in self._actions:
            raise _not_found()
        return self._actions[number]

    def _create(self) -> Any:
        order = _body()
        with self.lock:
            names = order.get("names") or [order.get("name")]
            several = "names" in order
            plans = [self._checked(order, name) for name in names]
            if self.faults.take("quota") is not None or len(self._droplets) + len(plans) > self.limit:
                raise _unprocessable("creating this/these droplet(s) will exceed your droplet limit")
            if self.faults.take("no_capacity") is not None:
                raise _unprocessable("Size is not available in this region.")
            made = [self._place(data, order) for data in plans]
            shown = [{**droplet.data, "networks": {"v4": [], "v6": []}} for droplet in made]
            actions = [
                {"id": d.action["id"], "rel": "create", "href": f"{self.url}/v2/actions/{d.action['id']}"} for d in made
            ]
        if (lost := self.faults.take("lost_reply")) is not None:
            if "gateway" in lost:
                raise Refusal(503, "service_unavailable", lost["gateway"])
            self.lose_reply()
        droplets = {"droplets": shown} if several else {"droplet": shown[0]}
        return {**droplets, "links": {"actions": actions}}, 202

    def _checked(self, order: Mapping[str, Any], name: Any) -> dict[str, Any]:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _unprocessable("Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)")
        if order.get("size") not in _SIZES:
            raise _unprocessable("You specified an invalid size for Droplet creation.")
        size = _size(order["size"])
        region = order.get("region")
        if region is None:
            region = size["regions"][0]
        if region not in _REGIONS:
            raise _unprocessable("You specified an invalid region for Droplet creation.")
        if region not in size["regions"]:
            raise _unprocessable("Size is not available in this region.")
        try:
            image = _image(str(order.get("image")))
        except Refusal:
            raise _unprocessable("You specified an invalid image for Droplet creation.") from None
        if len((order.get("user_data") or "").encode()) > _USER_DATA_LIMIT:
            raise _unprocessable(f"User data is too long (maximum is {_USER_DATA_LIMIT} bytes)")
        for key in order.get("ssh_keys") or []:
            if self._found_key(key) is None:
                raise _unprocessable(f"{key} are invalid key identifiers for Droplet creation.")
        tags = list(order.get("tags") or [])
        for tag in tags:
            if not isinstance(tag, str) or not _TAG.fullmatch(tag):
                raise _unprocessable("Tag names may only contain letters, numbers, colons, dashes, and underscores.")
        return {
            "id": next(self._ids),
            "name": name,
            "memory": size["memory"],
            "vcpus": size["vcpus"],
            "disk": size["disk"],
            "locked": True,
            "status": "new",
            "kernel": None,
            "created_at": _now(),
            "features": ["droplet_agent"],
            "backup_ids": [],
            "next_backup_window": None,
            "snapshot_ids": [],
            "image": image,
            "volume_ids": [],
            "size": size,
            "size_slug": size["slug"],
            "region": _region(region),
            "tags": tags,
            "vpc_uuid": "760e09ef-dc84-11e8-981e-3cfdfeaae000",
        }

    def _place(self, data: dict[str, Any], order: Mapping[str, Any]) -> _Droplet:
        """Start it; from here on it exists, and is billed."""
        eventual = self.faults.take("eventual")
        hidden = 0.0 if eventual is None else float(eventual.get("seconds", 1.0))
        droplet = _Droplet(data, time.monotonic() + hidden, self._act("create", data))
        self._droplets[data["id"]] = droplet
        self.meter.begin("instance", str(data["id"]), data["size"]["price_hourly"])
        if self.faults.take("fails_to_start") is not None:
            droplet.action.update(status="errored", completed_at=_now())
            data.update(status="off", locked=False)
            return droplet
        keys = [self._found_key(key) for key in order.get("ssh_keys") or []]
        droplet.boot = boot_image(
            self.machines,
            self.faults,
            order.get("user_data") or "",
            public_keys=[key["public_key"] for key in keys if key is not None],
            hostname=data["name"],
            on_power=lambda: self._powered(droplet),
        )
        return droplet

    def _powered(self, droplet: _Droplet) -> None:
        with self.lock:
            if droplet.data["status"] == "new":
                droplet.data.update(status="active", locked=False)
                droplet.action.update(status="completed", completed_at=_now())

    def _act(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        self._actions[number] = {
            "id": number,
            "status": "in-progress",
            "type": kind,
            "started_at": _now(),
            "completed_at": None,
            "resource_id": data["id"],
            "resource_type": "droplet",
            "region": data["region"],
            "region_slug": data["region"]["slug"],
        }
        return self._actions[number]

    def _act_on(self, number: int) -> Any:
        kind = _body().get("type")
        with self.lock:
            droplet = self._droplet(number)
            if kind not in {"reboot", "power_cycle", "shutdown", "power_off", "power_on"}:
                raise _unprocessable(f"{kind} is not a valid action type.")
            if droplet.data["locked"]:
                raise _unprocessable("Droplet already has a pending event.")
            action = self._act(kind, droplet.data)
            action.update(status="completed", completed_at=_now())
            off = kind in {"shutdown", "power_off"}
            droplet.data["status"] = "off" if off else "active"
            host = None if droplet.boot is None else droplet.boot.host
        if host is not None and off:
            host.kill()
        elif host is not None:
            host.restart()
        return {"action": action}, 201

    def _delete(self, number: int) -> Any:
        with self.lock:
            droplet = self._droplet(number)
        self._end([droplet])
        return "", 204

    def _delete_by_tag(self) -> Any:
        tag = flask.request.args.get("tag_name")
        if not tag:
            raise _unprocessable("tag_name is required.")
        with self.lock:
            tagged = [droplet for droplet in self._droplets.values() if tag in droplet.data["tags"]]
        self._end(tagged)
        return "", 204

    def _end(self, droplets: Iterable[_Droplet]) -> None:
        for droplet in droplets:
            if droplet.boot is not None:
                self.machines.end(droplet.boot)
            with self.lock:
                self._droplets.pop(droplet.data["id"], None)
                self.meter.end("instance", str(droplet.data["id"]))

    # Keys

    def _found_key(self, wanted: Any) -> dict[str, Any] | None:
        for key in self._keys.values():
            if str(wanted) in {str(key["id"]), key["fingerprint"]}:
                return key
        return None

    def _key(self, wanted: str) -> dict[str, Any]:
        with self.lock:
            key = self._found_key(wanted)
        if key is None:
            raise _not_found()
        return key

    def _create_key(self) -> Any:
        order = _body()
        public_key = order.get("public_key") or ""
        if not order.get("name"):
            raise _unprocessable("Name can't be blank")
        try:
            mark = fingerprint(public_key)
        except ValueError:
            raise _unprocessable("Key invalid, key should be of the format `type key [comment]`") from None
        with self.lock:
            if self._found_key(mark) is not None:
                raise _unprocessable("SSH Key is already in use on your account")
            id = next(self._ids)
            key = {"id": id, "name": order["name"], "fingerprint": mark, "public_key": public_key}
            self._keys[id] = key
            self.meter.begin("key", str(id))
        return {"ssh_key": key}, 201

    def _delete_key(self, wanted: str) -> Any:
        with self.lock:
            id = self._key(wanted)["id"]
            del self._keys[id]
            self.meter.end("key", str(id))
        return "", 204


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _body() -> dict[str, Any]:
    body = flask.request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise Refusal(400, "bad_request", "The request body is not valid JSON.")
    return body


def _region(slug: str) -> dict[str, Any]:
    name, available = _REGIONS[slug]
    sizes = [size for size, facts in _SIZES.items() if slug in facts[-1]]
    features = ["backups", "ipv6", "metadata", "install_agent", "storage"]
    return {"name": name, "slug": slug, "sizes": sizes, "features": features, "available": available}


def _size(slug: str) -> dict[str, Any]:
    memory, vcpus, disk, transfer, price, description, regions = _SIZES[slug]
    return {
        "slug": slug,
        "memory": memory,
        "vcpus": vcpus,
        "disk": disk,
        "transfer": transfer,
        "price_monthly": round(price * 672, 2),
        "price_hourly": price,
        "regions": list(regions),
        "available": True,
        "description": description,
    }


def _images() -> list[dict[str, Any]]:
    return [
        {
            "id": id,
            "name": name,
            "distribution": distribution,
            "slug": slug,
            "public": True,
            "regions": list(_REGIONS),
            "created_at": "2025-01-10T18:54:23Z",
            "min_disk_size": 7,
            "type": "base",
            "size_gigabytes": 0.6,
            "description": f"{distribution} {name}",
            "tags": [],
            "status": "available",
        }
        for id, name, distribution, slug in _IMAGES
    ]


def _image(wanted: str) -> dict[str, Any]:
    for image in _images():
        if wanted in {str(image["id"]), image["slug"]}:
            return image
    raise _not_found()
