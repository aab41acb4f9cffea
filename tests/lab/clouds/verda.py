"""Verda on this machine: the API that the vendor's own client talks to, with hosts of the lab as instances.

What it does where the vendor's documentation is silent: the statuses and words of refusals other than the known ones,
and when an instance goes from one starting state to the next (here: when it has been looked at).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import flask

from tests.lab import Host

from .cloud import Cloud
from .cloud_init import change_host_key
from .machines import Boot, Machines
from .verda_account import Texts, Volumes, check_key
from .verda_catalogue import AVAILABLE, IMAGES, LOCATIONS, SPOT, TYPES, VOLUME_TYPES, fits
from .verda_reply import Refusal, Row, bare, body, invalid, now, refuse, reply, unauthorized, unknown_path

__all__ = ["Verda"]

_STARTING = {"new", "ordered", "pending", "provisioning", "validating"}
_HOSTNAME = re.compile(r"(?!-)(?!.*-$)[a-zA-Z0-9-]*[a-zA-Z][a-zA-Z0-9-]*")
_TAG_KEY = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,62}")
_DISCONTINUE = {"keep_detached", "move_to_trash", "delete_permanently"}
_SCRIPT = "/var/lib/startup-script"
_SCRIPT_LIMIT = 600.0

# The images have systemd; a host of the lab has only an sshd, which writes its pid when it listens (again).
_SYSTEMCTL = """\
#!/bin/sh
case "$*" in
restart\\ ssh* | reload\\ ssh*) ;;
*) echo "systemctl: nothing but ssh can be restarted here" >&2; exit 1 ;;
esac
pid=$(cat /run/sshd.pid)
rm /run/sshd.pid
kill -HUP "$pid"
for _ in $(seq 500); do
    [ -s /run/sshd.pid ] && exit 0
    sleep 0.01
done
echo "systemctl: sshd did not come back" >&2
exit 1
"""


@dataclass
class _Instance:
    row: Row
    boot: Boot | None = None
    starts: Callable[[], Boot] | None = None  # what boots it, as long as it is stuck
    visible_at: float = 0.0
    gives_up_at: float = float("inf")
    fate: str = ""  # the state that it ends in instead of running


class Verda(Cloud):
    """Verda's API below ``/v1``. The account is (`client_id`, `client_secret`).

    Attributes
    ----------
    token_seconds
        How long an access token lasts.
    sold_out
        (instance type, location) that can't be had, beyond what the catalogue says.
    instances, volumes, keys, scripts
        What the account has, by id; deleted instances and volumes in the trash among them.
    base_url
        What clients are to be given.
    """

    client_id = "verda-lab-client"
    client_secret = "verda-lab-secret"

    def __init__(self, machines: Machines | None = None) -> None:
        self.token_seconds = 3600.0
        self.balance = 100.5
        self.sold_out: set[tuple[str, str]] = set()
        self.instances: dict[str, _Instance] = {}
        self._tokens: dict[str, float] = {}
        self._refresh_tokens: set[str] = set()
        super().__init__(machines)
        self.base_url = f"{self.url}/v1"

    # What can happen, for tests

    def evict(self, id: str) -> None:
        """Take a spot instance away, without notice."""
        with self.lock:
            instance = self.instances[id]
            assert instance.row["is_spot"], f"{id} is no spot instance"
            policy = instance.row["_on_spot_discontinue"]
            doomed = [] if policy == "keep_detached" else [instance.row["os_volume_id"]]
            self._discontinue(instance, doomed, permanently=policy == "delete_permanently")
        self._pull_the_plug(instance)

    def boot(self, id: str) -> None:
        """Let an instance that was stuck by the fault "never_boots" start after all."""
        with self.lock:
            instance = self.instances[id]
            starts, instance.starts = instance.starts, None
            assert starts is not None, f"{id} is not stuck"
            instance.gives_up_at = float("inf")
            instance.boot = starts()

    def machine(self, id: str) -> Host:
        """The host that is an instance."""
        boot = self.instances[id].boot
        assert boot is not None, f"{id} has not been booted"
        assert boot.host is not None, f"{id} has no host"
        return boot.host

    # The frame of all requests

    def routes(self) -> None:
        api = flask.Blueprint("v1", __name__, url_prefix="/v1")
        for method, path, view in self._table():
            api.add_url_rule(path, f"{method} {path}", self._guarded(view), methods=[method])
        self.app.before_request(self._gate)
        self.app.register_blueprint(api)
        self.app.register_error_handler(Refusal, refuse)
        for status in (404, 405):
            self.app.register_error_handler(status, lambda _: refuse(unknown_path()))
        self.app.register_error_handler(400, lambda _: refuse(invalid("The body is no JSON")))

    def _table(self) -> Iterable[tuple[str, str, Callable[..., Any]]]:
        keys, scripts = Texts(self.meter, "key", check_key), Texts(self.meter, "script")
        volumes = Volumes(self.meter, lambda holder: self.instances[holder].row["status"] != "offline")
        self.keys, self.scripts, self.volumes, self._volumes = keys.rows, scripts.rows, volumes.rows, volumes
        # The Python client's path of keys, and the documentation's.
        for folder, texts in [("/sshkeys", keys), ("/ssh-keys", keys), ("/scripts", scripts)]:
            yield "GET", folder, texts.all
            yield "POST", folder, texts.add
            yield "DELETE", folder, texts.remove_several
            yield "GET", f"{folder}/<id>", texts.one
            yield "DELETE", f"{folder}/<id>", texts.remove
        yield "POST", "/oauth2/token", self._token
        yield "GET", "/balance", lambda: {"amount": self.balance, "currency": "usd"}
        yield "GET", "/locations", lambda: LOCATIONS
        yield "GET", "/volume-types", lambda: VOLUME_TYPES
        yield "GET", "/instance-types", lambda: list(TYPES.values())
        yield "GET", "/images", self._images
        yield "GET", "/instance-availability", self._availability
        yield "GET", "/instance-availability/<kind>", self._is_available
        yield "GET", "/instances", self._list_instances
        yield "POST", "/instances", self._create
        yield "PUT", "/instances", self._act
        yield "GET", "/instances/<id>", self._one_instance
        yield "POST", "/instances/<id>/tags", self._add_tag
        yield "DELETE", "/instances/<id>/tags/<key>", self._remove_tag
        yield "GET", "/volumes", volumes.all
        yield "POST", "/volumes", volumes.create
        yield "PUT", "/volumes", volumes.act
        yield "GET", "/volumes/trash", volumes.trash
        yield "GET", "/volumes/<id>", volumes.one
        yield "DELETE", "/volumes/<id>", volumes.remove

    def _guarded(self, view: Callable[..., Any]) -> Callable[..., Any]:
        def locked(**parts: str) -> Any:
            with self.lock:
                answer = view(**parts)
            for work in flask.g.pop("later", ()):  # what takes long, and must not hold up others
                work()
            return flask.jsonify(answer) if isinstance(answer, list | bool) else answer

        return locked

    def _gate(self) -> flask.Response | None:
        """Faults of any call, and who may come in."""
        take = self.faults.take
        if take("html") is not None:
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return flask.Response(page, 502, mimetype="text/html")
        if (how := take("server_error")) is not None:
            status = how.get("status", 500)
            code = "service_unavailable" if status == 503 else "server_error"
            return refuse(Refusal(status, code, "Something went wrong, please try again later"))
        if (how := take("throttle")) is not None:
            wait = {"Retry-After": f"{how.get('wait', 1):g}"}
            return refuse(Refusal(429, "rate_limit_exceeded", "Rate limit exceeded", **wait))
        if take("bad_credentials") is not None:
            return refuse(unauthorized("Invalid client id or client secret"))
        if flask.request.url_rule is None or flask.request.path in {"/v1/oauth2/token", "/v1/instance-types"}:
            return None
        if take("token_expired") is not None:
            self._tokens.clear()
        token = flask.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._tokens.get(token, 0.0) <= time.monotonic():
            return refuse(unauthorized("Access token is missing or invalid"))
        return None

    def _token(self) -> Row:
        asked = flask.request.form.to_dict() or body()
        if asked.get("grant_type") == "refresh_token":
            if asked.get("refresh_token") not in self._refresh_tokens:
                raise unauthorized("Invalid refresh token")
        elif (asked.get("client_id"), asked.get("client_secret")) != (self.client_id, self.client_secret):
            raise unauthorized("Invalid client id or client secret")
        token, refresh = uuid.uuid4().hex, uuid.uuid4().hex
        self._tokens[token] = time.monotonic() + self.token_seconds
        self._refresh_tokens.add(refresh)
        return {
            "access_token": token,
            "refresh_token": refresh,
            "scope": "cloud-api-v1",
            "token_type": "Bearer",
            "expires_in": self.token_seconds,
        }

    # The catalogue

    def _images(self) -> list[Row]:
        kind = flask.request.args.get("instance_type")
        if kind is not None and kind not in TYPES:
            raise invalid("Invalid instance type")
        return [image for image in IMAGES if kind is None or fits(image["image_type"], TYPES[kind])]

    def _available(self, is_spot: bool) -> dict[str, list[str]]:
        table = SPOT if is_spot else AVAILABLE
        return {place: [kind for kind in kinds if (kind, place) not in self.sold_out] for place, kinds in table.items()}

    def _availability(self) -> list[Row]:
        place = flask.request.args.get("location_code")
        table = self._available(_asks_for_spot())
        return [
            {"location_code": code, "availabilities": kinds} for code, kinds in table.items() if place in {None, code}
        ]

    def _is_available(self, kind: str) -> bool:
        return any(kind in row["availabilities"] for row in self._availability())

    # Instances

    def _instance(self, id: Any, status: int = 400) -> _Instance:
        """An instance that the API knows by now, brought up to date."""
        instance = self.instances.get(id)
        if instance is None or time.monotonic() < instance.visible_at:
            raise Refusal(status, "not_found" if status == 404 else "invalid_request", "Invalid instance id")
        if instance.row["status"] in _STARTING and time.monotonic() >= instance.gives_up_at:
            instance.row["status"] = "installation_failed"
        return instance

    def _shown(self, instance: _Instance) -> Row:
        """The instance as it is. Being looked at moves it on, so that clients see every state."""
        row = instance.row
        seen = {key: value for key, value in row.items() if not key.startswith("_")}
        if row["status"] == "ordered":
            row["status"] = "provisioning"
        elif row["status"] == "provisioning" and instance.fate:
            row["status"] = instance.fate
        return seen

    def _one_instance(self, id: str) -> Row:
        return self._shown(self._instance(id, 404))

    def _list_instances(self) -> list[Row]:
        status, tag = flask.request.args.get("status"), flask.request.args.get("tag")
        listed = []
        for id, hidden in self.instances.items():
            if time.monotonic() < hidden.visible_at:
                continue
            row = self._instance(id).row
            tags = {f"{tag['key']}={tag['value']}" for tag in row["tags"]}
            wanted = row["status"] == status if status else row["status"] != "discontinued"
            if wanted and (tag is None or tag in tags):
                listed.append(self._shown(hidden))
        return listed

    def _create(self) -> flask.Response:
        order = body()
        wrong = _wrong_with(order)
        if wrong:
            raise invalid(wrong)
        self._check_references(order)
        kind, place = order["instance_type"], order.get("location_code") or "FIN-03"
        spot = bool(order.get("is_spot"))
        if self.faults.take("quota") is not None:
            raise Refusal(402, "insufficient_funds", "Insufficient funds")
        if self.faults.take("no_capacity") is not None or kind not in self._available(spot).get(place, ()):
            raise Refusal(503, "service_unavailable", "No capacity available")
        id = str(uuid.uuid4())
        row = self._new_row(id, order, place)
        instance = self.instances[id] = _Instance(row)
        self.meter.begin("instance", id, row["price_per_hour"])
        self._start(instance, from_image=order["image"] not in self.volumes)
        if (how := self.faults.take("eventual")) is not None:
            instance.visible_at = time.monotonic() + how.get("seconds", 1.0)
        if self.faults.take("lost_reply") is not None:
            self.lose_reply()
        return bare(id, 202)

    def _check_references(self, order: Row) -> None:
        """Everything that an order names must be there."""
        for id in order.get("ssh_key_ids") or ():
            if id not in self.keys:
                raise invalid("Invalid ssh key id")
        script = order.get("startup_script_id")
        if script is not None and script not in self.scripts:
            raise invalid("Invalid startup script id")
        place = order.get("location_code") or "FIN-03"
        of_system = order["image"] if order["image"] in self.volumes else None
        for id in [*([of_system] if of_system else []), *(order.get("existing_volumes") or ())]:
            volume = self.volumes.get(id)
            if volume is None or volume["status"] != "detached":
                raise invalid("Invalid volume id" if volume is None else "Volume is not detached")
            if volume["location"] != place:
                raise invalid(f"Volume location ({volume['location']}) does not match instance location ({place})")
        if not of_system and _image(order["image"]) is None:
            raise invalid("Invalid image")
        if not of_system and not fits(_image(order["image"])["image_type"], TYPES[order["instance_type"]]):
            raise invalid("Operating system is not valid for this instance type")

    def _new_row(self, id: str, order: Row, place: str) -> Row:
        kind, spot = TYPES[order["instance_type"]], bool(order.get("is_spot"))
        wanted = order.get("os_volume") or {}
        if order["image"] in self.volumes:
            system, name = self.volumes[order["image"]], "Ubuntu 24.04"
        else:
            title = wanted.get("name") or f"{order['hostname']}-os"
            system = self._volumes.add(title, wanted.get("size") or 50, place, is_os_volume=True)
            name = _image(order["image"])["name"]
        attached = [system, *(self.volumes[id] for id in order.get("existing_volumes") or ())]
        for extra in order.get("volumes") or ():
            attached.append(self._volumes.add(extra["name"], extra["size"], place, extra.get("type", "NVMe")))
        for letter, volume in zip("abcdefghij", attached, strict=False):
            volume.update(status="attached", instance_id=id, target=f"vd{letter}")
        return {
            "id": id,
            "ip": None,
            "private_ip": None,
            "status": "ordered",
            "created_at": now(),
            **{part: kind[part] for part in ("cpu", "gpu", "gpu_memory", "memory", "storage", "instance_type")},
            "hostname": order["hostname"],
            "description": order["description"],
            "location": place,
            "price_per_hour": float(kind["spot_price" if spot else "price_per_hour"]),
            "is_spot": spot,
            "image": order["image"],
            "os_name": name,
            "startup_script_id": order.get("startup_script_id"),
            "ssh_key_ids": list(order.get("ssh_key_ids") or ()),
            "os_volume_id": system["id"],
            "volume_ids": [volume["id"] for volume in attached],
            "jupyter_token": "",
            "contract": order.get("contract") or ("SPOT" if spot else "PAY_AS_YOU_GO"),
            "pricing": order.get("pricing") or "FIXED_PRICE",
            "tags": [{"key": tag["key"], "value": tag.get("value", "")} for tag in order.get("tags") or ()],
            "created_by_user_id": None,
            "_on_spot_discontinue": wanted.get("on_spot_discontinue") or "keep_detached",
        }

    def _start(self, instance: _Instance, *, from_image: bool) -> None:
        """Boot its machine, or do what a fault wants instead. A system on an old volume runs no startup script."""
        row = instance.row
        if (how := self.faults.take("fails_to_start")) is not None:
            instance.fate = how.get("status", "error")
            return
        keys = [self.keys[id]["key"] for id in row["ssh_key_ids"]]
        script = self.scripts[row["startup_script_id"]]["script"] if row["startup_script_id"] and from_image else None
        silent = self.faults.take("never_answers") is not None
        changed = self.faults.take("wrong_host_key") is not None
        delay = (self.faults.take("slow_boot") or {}).get("seconds", 0.0)

        def set_up(host: Host) -> None:
            _prepare(host, row["hostname"], keys)
            if not silent and not changed:  # an impostor must not be seen with the right key, not even for a moment
                host.mend()
            self._up(instance, host.address)
            if script is not None:
                _run_script(host, script)
            if changed:
                change_host_key(host)

        def on_up(boot: Boot) -> None:
            self._up(instance, boot.address, failed=boot.state == "failed")

        def start() -> Boot:
            return self.machines.boot(set_up, delay=delay, silent=silent, on_up=on_up)

        if (how := self.faults.take("never_boots")) is not None:
            instance.starts = start
            instance.gives_up_at = time.monotonic() + how.get("seconds", float("inf"))
        else:
            instance.boot = start()

    def _up(self, instance: _Instance, address: str, *, failed: bool = False) -> None:
        with self.lock:
            if instance.row["status"] not in _STARTING:
                return
            if failed:
                instance.row["status"] = "installation_failed"
            else:
                instance.row.update(status="running", ip=address)

    def _act(self) -> flask.Response:
        """One action on one or several instances; a single one's refusal is the reply's."""
        order = body()
        ids = order["id"] if isinstance(order.get("id"), list) else [order.get("id")]
        results, changed = [], False
        for id in ids:
            result: Row = {"action": order.get("action"), "instanceId": id, "status": "success"}
            try:
                changed |= self._act_on(self._instance(id), order)
            except Refusal as refusal:
                if len(ids) == 1:
                    raise
                result.update(status="error", error=refusal.message, statusCode=refusal.status)
                changed = True
            results.append(result)
        if not changed:
            return flask.Response(status=204)
        mixed = any(result["status"] == "error" for result in results)
        return reply(results, 207 if mixed else 202)

    def _act_on(self, instance: _Instance, order: Row) -> bool:
        """Whether anything had to be done."""
        action, status = order.get("action"), instance.row["status"]
        if action in {"delete", "discontinue", "delete_stuck"}:
            if status == "discontinued" or (status in _STARTING and action != "delete_stuck"):
                word = "discontinued" if status == "discontinued" else "provisioning"
                raise Refusal(403, "forbidden_action", f"Can't discontinue a {word} instance")
            doomed = order.get("volume_ids")
            if any(id not in instance.row["volume_ids"] for id in doomed or ()):
                raise invalid("Invalid volume id")
            doomed = [instance.row["os_volume_id"]] if doomed is None else doomed
            permanently = bool(order.get("delete_permanently")) and order.get("volume_ids") is not None
            self._discontinue(instance, doomed, permanently=permanently)
            flask.g.setdefault("later", []).append(lambda: self._pull_the_plug(instance))
            return True
        # Its disk has to outlive its being off, so the host runs on without a line.
        line, wanted = {
            "shutdown": ("cut", "offline"),
            "force_shutdown": ("cut", "offline"),
            "start": ("mend", "running"),
            "boot": ("mend", "running"),
        }.get(str(action), ("", ""))
        if not line:
            raise invalid("Invalid action")
        if status == wanted:
            return False
        if status not in {"running", "offline"}:
            raise Refusal(403, "forbidden_action", f"Can't {action} a {status} instance")
        instance.row["status"] = wanted
        if instance.boot is not None and instance.boot.host is not None:
            getattr(instance.boot.host, line)()
        return True

    def _discontinue(self, instance: _Instance, doomed: Iterable[str], *, permanently: bool) -> None:
        row = instance.row
        row["status"] = "discontinued"
        self.meter.end("instance", row["id"])
        for id in row["volume_ids"]:
            self.volumes[id].update(status="detached", instance_id=None, target=None)
        for id in doomed:
            self._volumes.delete(self.volumes[id], permanently=permanently)

    def _pull_the_plug(self, instance: _Instance) -> None:
        if instance.boot is not None:
            self.machines.end(instance.boot)

    def _add_tag(self, id: str) -> flask.Response:
        row, tag = self._instance(id, 404).row, body()
        tag = {"key": str(tag.get("key", "")).lower(), "value": str(tag.get("value", ""))}
        if wrong := _wrong_tags([*row["tags"], tag]):
            raise invalid(wrong)
        if any(known["key"] == tag["key"] for known in row["tags"]):
            raise Refusal(409, "conflict", f"Tag {tag['key']} exists already")
        row["tags"].append(tag)
        return reply(tag, 201)

    def _remove_tag(self, id: str, key: str) -> flask.Response:
        row = self._instance(id, 404).row
        row["tags"] = [tag for tag in row["tags"] if tag["key"] != key]
        return flask.Response(status=204)


def _prepare(host: Host, name: str, keys: list[str]) -> None:
    """What the image and the account give to a machine before it can be reached."""
    host.run("hostname", name, check=True)
    host.run("sh", "-c", "cat >.ssh/authorized_keys", input="".join(f"{key.strip()}\n" for key in keys), check=True)
    place = "/usr/local/sbin/systemctl"
    host.run("sh", "-c", f"cat >{place} && chmod 755 {place}", input=_SYSTEMCTL, check=True)


def _run_script(host: Host, script: str) -> None:
    """As root, with bash, once; nobody cares how it ends. Its output goes to a file, so what it starts may stay."""
    host.run("sh", "-c", f"cat >{_SCRIPT} && chmod 700 {_SCRIPT}", input=script, check=True)
    host.run("sh", "-c", f"bash {_SCRIPT} >{_SCRIPT}.log 2>&1", timeout=_SCRIPT_LIMIT)


def _wrong_with(order: Row) -> list[str]:
    """What is wrong with an order of an instance, before one asks what there is."""
    wrong = [
        f"{part} should not be empty"
        for part in ("instance_type", "image", "hostname", "description")
        if not order.get(part)
    ]
    if order.get("hostname") and not _HOSTNAME.fullmatch(order["hostname"]):
        wrong.append("hostname must consist of letters, digits and hyphens, with at least one letter")
    if order.get("instance_type") and order["instance_type"] not in TYPES:
        wrong.append("Invalid instance type")
    if order.get("location_code") and order["location_code"] not in AVAILABLE:
        wrong.append("Invalid location code")
    contract, spot = order.get("contract"), bool(order.get("is_spot"))
    if contract not in {None, "LONG_TERM", "PAY_AS_YOU_GO", "SPOT"} or (contract and (contract == "SPOT") != spot):
        wrong.append("Invalid contract")
    volume = order.get("os_volume") or {}
    policy = volume.get("on_spot_discontinue")
    if volume and (not volume.get("name") or not isinstance(volume.get("size"), int) or volume["size"] < 50):
        wrong.append("os_volume needs a name and a size of at least 50")
    if policy is not None and (policy not in _DISCONTINUE or not spot):
        wrong.append("on_spot_discontinue is only allowed for spot instances")
    return wrong + _wrong_tags(order.get("tags") or [])


def _wrong_tags(tags: list[Row]) -> list[str]:
    wrong = ["tags must contain no more than 10 elements"] if len(tags) > 10 else []
    for tag in tags:
        if not _TAG_KEY.fullmatch(str(tag.get("key", "")).lower()) or len(str(tag.get("value", ""))) > 127:
            wrong.append(f"Invalid tag {tag.get('key')}")
    return wrong


def _image(name: str) -> Any:
    return next((image for image in IMAGES if name in {image["id"], image["image_type"]}), None)


def _asks_for_spot() -> bool:
    """The Python client and the documentation spell it differently."""
    args = flask.request.args
    return (args.get("is_spot") or args.get("isSpot") or "").lower() == "true"
