"""Vast.ai as it looks from outside: the API, and containers that are hosts of the lab.

What the vendor's documentation does not tell was decided so that clients which are careful pass and others fail: a new
SSH port after each start, a new id for an offer that returns to the market, statuses that never skip a step.

Left out: volumes, templates, teams, virtual machines, and the entrypoint of images (``args`` is taken and not run).
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flask

from tests.lab import Host, LabError, eventually
from tests.lab.seed import make_key

from .cloud import Cloud
from .machines import Boot, Machines
from .vastai_market import catalogue, matches, ordered, priced

__all__ = ["VastAI"]

_PAGE = 25
_MAX_START, _MAX_ENV, _MAX_LABEL = 4096, 32768, 256
_BROKEN = "Error response from daemon: failed to create task for container: OCI runtime create failed: nvidia-container"
_HTML = "<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>\n"
_STAGES: list[str | None] = [None, "loading", "running"]

# Seconds between two calls; by the first part of the path after the version, and the method.
_INTERVALS = {
    "bundles POST": 6.0,
    "search PUT": 6.0,
    "asks PUT": 4.5,
    "instances GET": 1.5,
    "instances DELETE": 3.0,
    "instances PUT": 1.5,
    "ssh POST": 1.0,
}

# The container's sshd listens on 22, as seen from inside; the host leads another port there.
_PORTS = "ListenAddress 127.0.0.1:22\n"
_IMPOSTER = "/etc/ssh/imposter"


class _Refusal(Exception):
    def __init__(self, status: int, error: str, msg: str, **fields: Any) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"success": False, "error": error, "msg": msg, **fields}


@dataclass
class _Instance:
    id: int
    offer: dict[str, Any]
    order: dict[str, Any]
    price: float
    port: int
    key: str = field(default_factory=lambda: secrets.token_hex(32))
    keys: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    boot: Boot | None = None
    intended: str = "running"
    stage: int = 1  # how far it has come
    shown: int = 0  # how far the API has told; no client sees it skip a stage
    failed: str | None = None
    message: str | None = None
    hidden_until: float = 0.0

    @property
    def is_bid(self) -> bool:
        return self.order.get("price") is not None

    @property
    def is_known(self) -> bool:
        return time.monotonic() >= self.hidden_until

    @property
    def has_ssh(self) -> bool:
        """Whether its runtype brings an sshd; any but ``args`` does."""
        return self.order.get("runtype") != "args"

    @property
    def is_direct(self) -> bool:
        """Whether port 22 is mapped; the vendor's own client spells it "ssh_direc"."""
        return "direc" in self.order.get("runtype", "") and self.offer["direct_port_count"] > 0

    @property
    def status(self) -> str | None:
        if self.failed is not None and self.shown:
            return self.failed
        if self.intended == "running":
            return _STAGES[self.shown]
        return "exited" if self.stage == 2 else "stopped"


class VastAI(Cloud):
    """The marketplace.

    Parameters
    ----------
    machines
        Where containers run.
    offers
        What is on the market; see `catalogue`.
    pace
        Factor for the least time between two calls of a kind; what comes sooner is refused. 0: nothing is.

    Attributes
    ----------
    key
        The account's API key.
    credit
        Dollars that the account has; without any nothing is rented.
    """

    def __init__(
        self, machines: Machines | None = None, *, offers: list[dict[str, Any]] | None = None, pace: float = 0.0
    ) -> None:
        self.key = secrets.token_hex(32)
        self.credit = 25.0
        self.offers = {offer["id"]: offer for offer in (catalogue() if offers is None else offers)}
        self.instances: dict[int, _Instance] = {}
        self.keys: dict[int, dict[str, Any]] = {}
        self.pace = pace
        self._called: dict[str, float] = {}
        self._ids = itertools.count(20000001)
        self._key_ids = itertools.count(501)
        self._offer_ids = itertools.count(7100001)
        self._free_ports = itertools.count(40022)
        super().__init__(machines)

    # Switches for tests

    def outbid(self, id: int | str) -> None:
        """Let somebody bid more: the container is stopped without notice, its disk stays."""
        self._halt(self.instances[int(id)], "stopped")

    def resume(self, id: int | str) -> None:
        """Let a bid win again: the same container starts anew, on another port."""
        self._start_again(self.instances[int(id)])

    def fail(self, id: int | str, status: str = "exited") -> None:
        """Let the machine below fail; "exited", "unknown" (no heartbeat) or "offline" is what the API tells."""
        instance = self.instances[int(id)]
        with self.lock:
            instance.failed = status
            instance.message = _BROKEN if status == "exited" else f"host of machine {instance.offer['machine_id']} lost"
        self._silence(instance)

    def host_of(self, id: int | str) -> Host:
        """The host that is an instance's container."""
        boot = self.instances[int(id)].boot
        assert boot is not None
        assert boot.host is not None, f"instance {id} has no host (yet, any more, or for want of a lab)"
        return boot.host

    # The door

    def routes(self) -> None:
        app = self.app
        app.url_map.strict_slashes = False
        app.json.sort_keys = False
        app.before_request(self._admit)
        app.register_error_handler(_Refusal, lambda refusal: (refusal.body, refusal.status))
        app.register_error_handler(
            404, lambda _: ({"success": False, "error": "not_found", "msg": "no such path"}, 404)
        )
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/api/v0/gpu_names/unique/", self._gpu_names),
            ("POST", "/api/v0/bundles/", lambda: self._search(self._body())),
            ("PUT", "/api/v0/search/asks/", lambda: self._search(self._body()["q"])),
            ("PUT", "/api/v0/asks/<int:id>/", self._create),
            ("GET", "/api/v1/instances/", self._list),
            ("GET", "/api/v0/instances/<int:id>/", self._show),
            ("PUT", "/api/v0/instances/<int:id>/", self._manage),
            ("DELETE", "/api/v0/instances/<int:id>/", self._destroy),
            ("PUT", "/api/v0/instances/reboot/<int:id>/", self._reboot),
            ("PUT", "/api/v0/instances/bid_price/<int:id>/", self._change_bid),
            ("POST", "/api/v0/instances/<int:id>/ssh/", self._attach),
            ("GET", "/api/v0/ssh/", lambda: list(self.keys.values())),
            ("POST", "/api/v0/ssh/", self._add_key),
            ("DELETE", "/api/v0/ssh/<int:id>/", self._delete_key),
            ("GET", "/api/v0/users/current", self._user),
        ]
        for n, (method, path, view) in enumerate(table):
            app.add_url_rule(path, f"{n}", view, methods=[method])

    def _admit(self) -> Any:
        """Faults, keys and the pace, before any route."""
        asked = flask.request
        if asked.path.startswith("/api/v0/gpu_names/"):
            return None  # the CLI asks this before it knows a key
        if self.faults.take("html") is not None:
            return flask.Response(_HTML, 502, content_type="text/html; charset=UTF-8")
        if self.faults.take("server_error") is not None:
            raise _Refusal(500, "server_error", "Internal server error. Please try again later.")
        throttle = self.faults.take("throttle")
        if throttle is not None or self._too_soon():
            return self._throttled(throttle or {})
        word, _, key = asked.headers.get("Authorization", "").partition(" ")
        key = key.strip() if word == "Bearer" else asked.args.get("api_key", "")
        if key == self.key and self.faults.take("bad_credentials") is None:
            return None
        with self.lock:
            own = next((instance for instance in self.instances.values() if instance.key == key), None)
        if own is None:
            raise _Refusal(401, "auth_error", "Invalid user key")
        if asked.method not in {"PUT", "DELETE"} or asked.path.rstrip("/") != f"/api/v0/instances/{own.id}":
            raise _Refusal(403, "forbidden", "This key may start, stop and destroy its own instance only")
        return None

    def _too_soon(self) -> bool:
        if not self.pace:
            return False
        kind = f"{flask.request.path.split('/')[3]} {flask.request.method}"
        now = time.monotonic()
        with self.lock:
            early = now - self._called.get(kind, -1e9) < _INTERVALS.get(kind, 0.0) * self.pace
            self._called[kind] = self._called.get(kind, 0.0) if early else now
        return early

    @staticmethod
    def _throttled(details: dict[str, Any]) -> flask.Response:
        """Plain text and no advice, as a rule; details: ``wait`` seconds, ``daily`` for the quota of searches."""
        if details.get("daily"):
            body = {"success": False, "error": "search_quota_exceeded", "msg": "Daily search quota exceeded"}
            return flask.Response(json.dumps(body), 429, content_type="application/json")
        headers = {"Retry-After": str(details["wait"])} if "wait" in details else {}
        return flask.Response("API requests too frequent", 429, headers, content_type="text/plain")

    @staticmethod
    def _body() -> dict[str, Any]:
        body = flask.request.get_json(force=True, silent=True)
        if not isinstance(body, dict):
            raise _Refusal(400, "invalid_args", "the body is no JSON object")
        return body

    def _instance(self, id: int) -> _Instance:
        instance = self.instances.get(id)
        if instance is None:
            raise _Refusal(404, "no_such_instance", f"Instance {id} not found.")
        return instance

    # The market

    def _gpu_names(self) -> Any:
        with self.lock:
            return {"gpu_names": sorted({offer["gpu_name"] for offer in self.offers.values() if offer["gpu_name"]})}

    def _search(self, query: dict[str, Any]) -> Any:
        kind = query.get("type", "on-demand")
        if kind not in {"on-demand", "ondemand", "bid", "reserved"}:
            raise _Refusal(400, "invalid_args", f"unknown type {kind}")
        storage = float(query.get("allocated_storage") or 5.0)
        with self.lock:
            offers = [priced(offer, storage) for offer in self.offers.values()]
        found = [{**offer, "is_bid": kind == "bid"} for offer in offers if matches(offer, query)]
        found = ordered(found, query.get("order") or [["score", "desc"]])
        limit = query.get("limit")
        return {"offers": found[: int(limit)] if limit else found}

    def _create(self, id: int) -> Any:
        order = self._body()
        self._check_order(order)
        with self.lock:
            gone = self.faults.take("no_capacity") is not None and self.offers.pop(id, None) is not None
            if gone or id not in self.offers:
                msg = f"error 404/3603: no_such_ask Instance type by id {id} is not available."
                raise _Refusal(404, "invalid_args", msg, ask_id=id)
            if self.credit <= 0 or self.faults.take("quota") is not None:
                raise _Refusal(400, "insufficient_credit", "Your account lacks credit; see the billing page.")
            offer = self.offers[id]
            bid = order.get("price")
            half_made = self.faults.take("half_made") is not None or (bid is not None and bid < offer["min_bid"])
            del self.offers[id]
            instance = self._rent(offer, order)
        if half_made:
            instance.intended, instance.stage = "stopped", 1
            msg = f"bid of {bid} is too low for ask {id}"
            raise _Refusal(400, "invalid_price", msg, new_contract=instance.id)
        self._boot(instance)
        if self.faults.take("lost_reply") is not None:
            self.lose_reply()
        return {"success": True, "new_contract": instance.id, "instance_api_key": instance.key}

    @staticmethod
    def _check_order(order: dict[str, Any]) -> None:
        price, env = order.get("price"), order.get("env") or {}
        start = len(order.get("onstart") or "") + sum(map(len, order.get("args") or []))
        checks = [
            (not order.get("image"), "invalid_args", "image is missing"),
            (float(order.get("disk") or 10) < 8, "invalid_args", "disk must be at least 8 GB"),
            (start > _MAX_START, "invalid_args", f"onstart and args are longer than {_MAX_START}"),
            (not isinstance(env, dict) or len(json.dumps(env)) > _MAX_ENV, "invalid_args", "env is wrong or too long"),
            (len(order.get("label") or "") > _MAX_LABEL, "invalid_args", f"label is longer than {_MAX_LABEL}"),
            (price is not None and not 0.001 <= price <= 128, "invalid_price", "price is not in [0.001, 128]"),
        ]
        for wrong, error, msg in checks:
            if wrong:
                raise _Refusal(400, error, msg)

    def _rent(self, offer: dict[str, Any], order: dict[str, Any]) -> _Instance:
        storage = float(order.get("disk") or 10)
        disk = priced(offer, storage)["storage_total_cost"]
        price = (order.get("price") or offer["dph_base"]) + disk
        instance = _Instance(next(self._ids), offer, order, round(price, 6), next(self._free_ports))
        eventual = self.faults.take("eventual")
        if eventual is not None:
            instance.hidden_until = time.monotonic() + eventual["seconds"]
        self.instances[instance.id] = instance
        self.meter.begin("instance", str(instance.id), instance.price)
        return instance

    # Instances through the API

    def _list(self) -> Any:
        asked = flask.request.args
        limit = min(int(asked.get("limit", _PAGE)), _PAGE)
        filters = json.loads(asked.get("select_filters") or "{}")
        order = json.loads(asked.get("order_by") or "[]") or [{"col": "id", "dir": "asc"}]
        with self.lock:
            rows = [self._row(instance) for instance in self.instances.values() if instance.is_known]
            rows = ordered([row for row in rows if matches(row, filters)], [[by["col"], by["dir"]] for by in order])
            start = 0
            if asked.get("after_token"):
                last = json.loads(base64.b64decode(asked["after_token"]))
                start = next((n + 1 for n, row in enumerate(rows) if row["id"] == last["id"]), len(rows))
            page = rows[start : start + limit]
            for row in page:
                self._tell(self.instances[row["id"]])
        more = start + limit < len(rows)
        token = base64.b64encode(json.dumps({"id": page[-1]["id"]}).encode()).decode() if more else None
        counts = {"total_instances": len(rows), "instances_found": len(page), "label_counts": {}}
        return {"success": True, "instances": page, "next_token": token, **counts}

    def _show(self, id: int) -> Any:
        with self.lock:
            instance = self.instances.get(id)
            if instance is None or not instance.is_known:
                return {"instances": None}
            row = self._row(instance)
            self._tell(instance)
        return {"instances": row}

    @staticmethod
    def _tell(instance: _Instance) -> None:
        instance.shown = min(instance.shown + 1, instance.stage)

    def _row(self, instance: _Instance) -> dict[str, Any]:
        offer, order, status = instance.offer, instance.order, instance.status
        copied = ("machine_id", "host_id", "num_gpus", "gpu_name", "gpu_ram", "gpu_frac", "cpu_cores", "cpu_ram")
        copied += ("cpu_cores_effective", "geolocation", "verification", "reliability2", "direct_port_count")
        copied += ("inet_up", "inet_down", "storage_cost", "end_date", "dlperf", "total_flops")
        row: dict[str, Any] = {name: offer[name] for name in copied}
        row |= {
            "id": instance.id,
            "label": order.get("label"),
            "actual_status": status,
            "intended_status": instance.intended,
            "cur_state": instance.intended,
            "next_state": instance.intended,
            "status_msg": f"success, running {order['image']}" if status == "running" else instance.message,
            "is_bid": instance.is_bid,
            "min_bid": offer["min_bid"],
            "dph_base": order.get("price") or offer["dph_base"],
            "dph_total": instance.price,
            "image_uuid": order["image"],
            "image_runtype": order.get("runtype") or "ssh",
            "image_args": order.get("args") or [],
            "onstart": order.get("onstart"),
            "extra_env": [[name, value] for name, value in (order.get("env") or {}).items()],
            "disk_space": order.get("disk") or 10,
            "ssh_host": "ssh5.vast.ai",
            "ssh_port": 10000 + instance.id % 20000,
            "ssh_idx": "5",
            "local_ipaddrs": "172.17.0.2 \n",
            "start_date": instance.began,
            "duration": time.time() - instance.began,
            "uptime_mins": None,
            "template_hash_id": None,
            "gpu_util": 0.0,
            "cpu_util": 0.0,
            "disk_usage": 1.0,
            "public_ipaddr": None,
        }
        if instance.boot is not None and instance.stage == 2:
            row["public_ipaddr"] = f"{instance.boot.address}\n"  # with the line's end, as hosts report it
        if status == "running":  # absent, not null, until then
            row["ports"] = self._mapped(instance)
        return row

    @staticmethod
    def _mapped(instance: _Instance) -> dict[str, Any]:
        inside = [name.split()[1].rpartition(":")[2] for name in instance.order.get("env") or {} if name[:3] == "-p "]
        ports = {f"{port}/tcp": port for port in inside} if instance.offer["direct_port_count"] else {}
        if instance.is_direct:
            ports["22/tcp"] = str(instance.port)
        return {
            name: [{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]
            for name, port in ports.items()
        }

    def _manage(self, id: int) -> Any:
        instance, body = self._instance(id), self._body()
        if "label" in body:
            instance.order["label"] = body["label"]
        if body.get("state") == "stopped":
            self._halt(instance, "stopped")
        elif body.get("state") == "running":
            self._start_again(instance)
        return {"success": True}

    def _reboot(self, id: int) -> Any:
        instance = self._instance(id)
        self._halt(instance, "stopped")
        self._start_again(instance)
        return {"success": True}

    def _change_bid(self, id: int) -> Any:
        instance, body = self._instance(id), self._body()
        if not instance.is_bid:
            raise _Refusal(400, "invalid_args", f"Instance {id} is not interruptible.")
        instance.order["price"] = body["price"]
        return {"success": True}

    def _destroy(self, id: int) -> Any:
        with self.lock:
            instance = self._instance(id)
            del self.instances[id]
            self.meter.end("instance", str(id))
            offer = {**instance.offer, "id": next(self._offer_ids)}
            self.offers[offer["id"]] = {**offer, "ask_contract_id": offer["id"]}
        if instance.boot is not None:  # outside the lock: pulling a plug takes time
            self.machines.end(instance.boot)
        return {"success": True, "msg": "Instance destroyed successfully"}

    # Keys and the account

    def _add_key(self) -> Any:
        text = str(self._body().get("ssh_key") or "").strip()
        with self.lock:
            if not text.startswith(("ssh-", "ecdsa-", "sk-")):
                raise _Refusal(400, "invalid_args", "Invalid SSH key")
            if any(key["public_key"] == text for key in self.keys.values()):
                raise _Refusal(400, "duplicate", "SSH key already exists.")
            id = next(self._key_ids)
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.keys[id] = {"id": id, "user_id": 9, "public_key": text, "created_at": created, "deleted_at": None}
            self.meter.begin("key", str(id))
            return {"success": True, "key": self.keys[id]}

    def _delete_key(self, id: int) -> Any:
        with self.lock:
            if self.keys.pop(id, None) is None:
                raise _Refusal(404, "no_such_key", f"SSH key {id} not found.")
            self.meter.end("key", str(id))
        return {"success": True}

    def _attach(self, id: int) -> Any:
        instance, key = self._instance(id), str(self._body().get("ssh_key") or "").strip()
        with self.lock:
            instance.keys.append(key)
            host = instance.boot.host if instance.boot is not None else None
        if host is not None:
            with contextlib.suppress(LabError, OSError):  # it is being started, and gets all keys then, or it ended
                self._authorize(host, instance)
        return {"success": True, "msg": "SSH key attached successfully"}

    def _user(self) -> Any:
        money = {"credit": self.credit, "balance": 0.0, "balance_threshold_enabled": False}
        return {"id": 9, "username": "u", "email": "u@example.org", "ssh_key": "", **money}

    # Containers

    def _boot(self, instance: _Instance) -> None:
        """Start the container's host; what happens to it is told by its faults."""
        if self.faults.take("never_boots") is not None:
            return
        if (broken := self.faults.take("fails_to_start")) is not None:
            instance.failed, instance.message = broken.get("status", "created"), _BROKEN
            return
        slow = self.faults.take("slow_boot") or {}
        silent = self.faults.take("never_answers") is not None
        wrong = self.faults.take("wrong_host_key") is not None

        def set_up(host: Host) -> None:
            if instance.has_ssh:
                self._authorize(host, instance)
                self._listen(host, instance, wrong)

        def on_up(boot: Boot) -> None:
            with self.lock:
                if boot.state == "failed":
                    instance.failed, instance.message = "exited", f"{boot.error}"
                    return
                instance.stage = 2
                stopped = instance.intended != "running"
            if stopped:  # while it was being started
                self._silence(instance)
            elif boot.host is not None:
                self._run_onstart(boot.host, instance)

        instance.boot = self.machines.boot(set_up, delay=slow.get("seconds", 0.0), silent=silent, on_up=on_up)

    def _authorize(self, host: Host, instance: _Instance) -> None:
        with self.lock:
            keys = [*(key["public_key"] for key in self.keys.values()), *instance.keys]
        (host.root / "root/.ssh/authorized_keys").write_text("".join(f"{key}\n" for key in dict.fromkeys(keys)))

    def _listen(self, host: Host, instance: _Instance, wrong_key: bool = False) -> None:
        """Let sshd listen where the host maps port 22 from; with a wrong key it is a stranger who listens there."""
        eventually(lambda: _answers(host, "127.0.0.1", 22), 30, f"the sshd inside {host.name}")
        config = host.root / "etc/ssh/sshd_config"
        rest = [line for line in config.read_text().splitlines() if not line.startswith("ListenAddress ")]
        outside = f"ListenAddress 0.0.0.0:{instance.port}\n" if instance.is_direct else ""
        text = "\n".join(rest) + "\n"
        if wrong_key:
            make_key(host.root / _IMPOSTER.lstrip("/"), "imposter")
            strange = [line for line in rest if not line.startswith(("HostKey ", "PidFile "))]
            strange += [f"HostKey {_IMPOSTER}", "PidFile /run/imposter.pid", ""]
            (host.root / f"{_IMPOSTER}.conf".lstrip("/")).write_text(outside + "\n".join(strange))
            outside = ""
        config.write_text(_PORTS + outside + text)
        host.run("kill", "-HUP", (host.root / "run/sshd.pid").read_text().strip(), check=True)
        if wrong_key:
            host.run("/usr/sbin/sshd", "-f", f"{_IMPOSTER}.conf", check=True)
        if instance.is_direct:
            eventually(lambda: _answers(host, host.address, instance.port), 30, f"port {instance.port} of {host.name}")

    def _run_onstart(self, host: Host, instance: _Instance) -> None:
        """As Vast does: root, bash, in the background, when sshd is up."""
        with self.lock:
            keys = "\n".join(key["public_key"] for key in self.keys.values())
            onstart = instance.order.get("onstart")
            given = {name: value for name, value in (instance.order.get("env") or {}).items() if " " not in name}
        env = {
            **given,
            "CONTAINER_ID": str(instance.id),
            "CONTAINER_API_KEY": instance.key,
            "PUBLIC_IPADDR": host.address,
            "SSH_PUBLIC_KEY": keys,
            "VAST_CONTAINERLABEL": f"C.{instance.id}",
            **({"VAST_TCP_PORT_22": str(instance.port)} if instance.is_direct else {}),
        }
        if not onstart:
            return
        with contextlib.suppress(LabError, OSError):  # it was destroyed meanwhile
            (host.root / "root/onstart.sh").write_text(onstart)
            pairs = [f"{name}={value}" for name, value in env.items()]
            command = "exec setsid --fork bash /root/onstart.sh </dev/null >>/var/log/onstart.log 2>&1"
            host.run("env", *pairs, "bash", "-c", command, check=True)

    def _halt(self, instance: _Instance, intended: str) -> None:
        with self.lock:
            instance.intended = intended
        self._silence(instance)

    @staticmethod
    def _silence(instance: _Instance) -> None:
        """End all processes of a container at once; no packet says so."""
        host = instance.boot.host if instance.boot is not None else None
        if host is not None:
            with contextlib.suppress(LabError):  # it was destroyed meanwhile
                host.cut()
                host.run("bash", "-c", "kill -KILL -1")

    def _start_again(self, instance: _Instance) -> None:
        with self.lock:
            running = instance.intended == "running" and instance.failed is None
            instance.intended, instance.failed, instance.message = "running", None, None
            boot = instance.boot
            if not running:
                instance.stage = instance.shown = 1
                instance.port = next(self._free_ports)
        if running or (boot is not None and boot.state == "booting"):
            return
        if boot is None:  # it never ran
            self._boot(instance)
            return
        if boot.host is not None:
            if instance.has_ssh:
                self._listen(boot.host, instance)
            boot.host.mend()
        with self.lock:
            instance.stage = 2
        if boot.host is not None:
            self._run_onstart(boot.host, instance)


def _answers(host: Host, address: str, port: int) -> bool:
    """Whether an sshd greets, seen from inside; also when the host's line is cut."""
    greet = f"exec 3<>/dev/tcp/{address}/{port} && read -r -t 2 line <&3 && [[ $line == SSH-* ]]"
    return host.run("bash", "-c", greet).returncode == 0
