"""Verda (formerly DataCrunch) for apache-libcloud: the vendor's public API as a `NodeDriver`.

It knows only libcloud and the standard library. Like every libcloud driver it blocks, and one object serves one thread.
What the API has and libcloud has no field for is in `extra`, under the API's names.

Surprises: create has no idempotency token, so a lost reply leaves an instance that can only be found by its host name
or tags. Deleting is refused while an instance is starting (`VerdaStillProvisioningError`). Volumes outlive their
instance, and are billed, unless they are deleted with it.
"""

# libcloud claims to be typed, but few of its functions are.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import KeyPair, Node, NodeDriver, NodeImage, NodeLocation, NodeSize, StorageVolume
from libcloud.compute.types import KeyPairDoesNotExistError, NodeState, StorageVolumeState

from .verda_connection import (
    SHOWN,
    VerdaAlreadyDiscontinuedError,
    VerdaConnection,
    VerdaError,
    VerdaNoCapacityError,
    VerdaNotFoundError,
    VerdaResponse,
    VerdaStillProvisioningError,
    refusal,
    segment,
)

__all__ = [
    "VerdaAlreadyDiscontinuedError",
    "VerdaConnection",
    "VerdaError",
    "VerdaNoCapacityError",
    "VerdaNodeDriver",
    "VerdaNotFoundError",
    "VerdaResponse",
    "VerdaStartupScript",
    "VerdaStillProvisioningError",
]


@dataclass(frozen=True)
class VerdaStartupScript:
    """A bash script that an instance runs once, as root, after its first boot."""

    id: str
    name: str
    script: str
    created_at: datetime | None = None


class VerdaNodeDriver(NodeDriver):
    """Verda's instances, instance types, images, keys, startup scripts and volumes.

    Parameters
    ----------
    key, secret
        The client id and the client secret.
    host, port, secure, api_version
        Where the API is; https://api.verda.com/v1 by default.
    region
        Location code of new instances that are given no location.
    url
        Where the API is, in one string with its version: "http://127.0.0.1:8080/v1". Overrides host and port.
    options
        ``timeout`` (seconds), ``proxy_url`` and other keywords of libcloud's drivers.
    """

    name = "Verda"
    website = "https://verda.com"
    type = "verda"
    api_name = "verda"
    connectionCls = VerdaConnection  # noqa: N815 (libcloud's name)
    features = {"create_node": ["ssh_key"]}  # noqa: RUF012 (so declared by libcloud, as is the next)

    NODE_STATE_MAP = {  # noqa: RUF012
        "new": NodeState.PENDING,
        "ordered": NodeState.PENDING,
        "pending": NodeState.PENDING,
        "provisioning": NodeState.PENDING,
        "validating": NodeState.PENDING,
        "running": NodeState.RUNNING,
        "offline": NodeState.STOPPED,
        "starting_hibernation": NodeState.STOPPING,
        "hibernating": NodeState.SUSPENDED,
        "restoring": NodeState.STARTING,
        "deleting": NodeState.STOPPING,
        "discontinued": NodeState.TERMINATED,
        "notfound": NodeState.TERMINATED,
        "error": NodeState.ERROR,
        "installation_failed": NodeState.ERROR,
        "no_capacity": NodeState.ERROR,
        "unknown": NodeState.UNKNOWN,
    }

    VOLUME_STATE_MAP: ClassVar[dict[str, Any]] = {
        "ordered": StorageVolumeState.CREATING,
        "creating": StorageVolumeState.CREATING,
        "cloning": StorageVolumeState.CREATING,
        "created": StorageVolumeState.AVAILABLE,
        "detached": StorageVolumeState.AVAILABLE,
        "exported": StorageVolumeState.AVAILABLE,
        "attaching": StorageVolumeState.ATTACHING,
        "attached": StorageVolumeState.INUSE,
        "detaching": StorageVolumeState.UPDATING,
        "restoring": StorageVolumeState.UPDATING,
        "canceling": StorageVolumeState.DELETING,
        "deleting": StorageVolumeState.DELETING,
        "canceled": StorageVolumeState.DELETED,
        "deleted": StorageVolumeState.DELETED,
    }

    def __init__(
        self,
        key: str,
        secret: str,
        secure: bool = True,
        host: str | None = None,
        port: int | None = None,
        api_version: str | None = None,
        region: str | None = None,
        url: str | None = None,
        **options: Any,
    ) -> None:
        if not key or not secret:
            raise InvalidCredsError("Verda needs a client id (key) and a client secret (secret)")
        self._url = url
        super().__init__(key, secret, secure, host, port, api_version, region, **options)

    # Instances

    def list_nodes(self, ex_status: str | None = None, ex_tag: tuple[str, str] | None = None) -> list[Node]:
        """List all instances, in any state, that are not deleted.

        Parameters
        ----------
        ex_status
            Only those in this state; "discontinued" lists deleted ones.
        ex_tag
            Only those with this (key, value).
        """
        asked = {"status": ex_status, "tag": None if ex_tag is None else "=".join(ex_tag)}
        return [_to_node(self, row) for row in _rows(self._call("GET", "/instances", asked))]

    def ex_get_node(self, node_id: str) -> Node:
        """Return one instance, even a deleted one."""
        return _to_node(self, self._row(node_id))

    def create_node(
        self,
        name: str,
        size: NodeSize,
        image: NodeImage,
        location: NodeLocation | None = None,
        auth: Any = None,
        ex_ssh_key_ids: Sequence[str] = (),
        ex_startup_script_id: str | None = None,
        ex_is_spot: bool = False,
        ex_os_volume: Mapping[str, Any] | None = None,
        ex_description: str | None = None,
        ex_tags: Mapping[str, str] | None = None,
        ex_volumes: Sequence[Mapping[str, Any]] = (),
        ex_existing_volumes: Sequence[str] = (),
        ex_contract: str | None = None,
    ) -> Node:
        """Order an instance and return at once; its state is PENDING, and its address not known yet.

        Nothing is requested after the order, so that the new id is never lost to the failure of a second request.

        Parameters
        ----------
        name
            The host name: letters, digits and hyphens, at least one letter.
        size, image
            Instance type and image.
        location
            None: the driver's region.
        auth
            A `NodeAuthSSHKey`, which is added to the account's keys under the instance's name, if it is not there yet.
        ex_ssh_key_ids
            Ids of further keys of the account.
        ex_startup_script_id
            A script of the account to run at the first boot.
        ex_is_spot
            Whether the instance may be evicted.
        ex_os_volume
            {"name", "size" (GB, 50 or more), "on_spot_discontinue"}. The last decides what happens to a spot instance's
            volume when it is evicted: "keep_detached" (the default, and it is billed), "move_to_trash" or
            "delete_permanently".
        ex_description, ex_tags
            For people, and for `list_nodes`; the description is the name by default.
        ex_volumes
            Further volumes to create: {"name", "size", "type"} of each.
        ex_existing_volumes
            Ids of volumes to attach.
        ex_contract
            Default: SPOT for spot instances, else PAY_AS_YOU_GO.
        """
        keys = list(ex_ssh_key_ids)
        if auth is not None:
            chosen: Any = self._get_and_check_auth(auth)
            keys.append(_key_id(self, name, chosen.pubkey))
        order = {
            "instance_type": size.id,
            "image": image.id,
            "hostname": name,
            "description": ex_description or name,
            "location_code": self.region if location is None else location.id,
            "ssh_key_ids": keys,
            "startup_script_id": ex_startup_script_id,
            "is_spot": ex_is_spot,
            "contract": ex_contract or ("SPOT" if ex_is_spot else "PAY_AS_YOU_GO"),
            "os_volume": None if ex_os_volume is None else dict(ex_os_volume),
            "volumes": [dict(volume) for volume in ex_volumes] or None,
            "existing_volumes": list(ex_existing_volumes) or None,
            "tags": [{"key": key, "value": value} for key, value in (ex_tags or {}).items()] or None,
        }
        order = {key: value for key, value in order.items() if value is not None}
        id = _new_id(self._call("POST", "/instances", body=order))
        known = {"id": id, "status": "ordered", "ip": None, "location": order.get("location_code"), **order}
        return _to_node(self, known)

    def destroy_node(self, node: Node) -> bool:
        """Delete an instance and all volumes attached to it, permanently.

        May be repeated: for an instance that is already gone it deletes what is left of its volumes.

        Raises
        ------
        VerdaStillProvisioningError
            It is starting; retry until the call is accepted.
        VerdaNotFoundError
            There has never been such an instance, or the API no longer knows it.
        """
        now = self._row(node.id)
        volumes = sorted({now.get("os_volume_id"), *(now.get("volume_ids") or ())} - {None})
        if now["status"] not in {"discontinued", "notfound"}:
            # Without a list, the API's default is better than [], which would keep all volumes.
            how = {"volume_ids": volumes, "delete_permanently": True} if volumes else {}
            with contextlib.suppress(VerdaAlreadyDiscontinuedError):
                self._act(node.id, "delete", **how)
                return True
        for volume in self.list_volumes(ex_trash=True):
            if volume.id in volumes and _status(volume) != "deleting":
                with contextlib.suppress(VerdaNotFoundError):
                    self.destroy_volume(volume)
        return True

    # Instance types, images, locations

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """List all instance types; `price` is US dollars per hour for the whole machine.

        They are the same everywhere; `ex_availability` says where they are available. `disk` is 0 since the size of the
        OS volume is part of each order. `extra` has cores, gpu_model (None without a GPU), gpu_count, gpu_memory_gb (of
        all GPUs together), spot_price (None if there is none), currency and the API's other fields.
        """
        return [_to_size(self, row) for row in _rows(self._call("GET", "/instance-types", {"currency": "usd"}))]

    def list_images(self, location: NodeLocation | None = None, ex_size: NodeSize | None = None) -> list[NodeImage]:
        """List all images, or those that fit an instance type. The id is the image's type, such as "ubuntu-24.04"."""
        asked = {"instance_type": None if ex_size is None else ex_size.id}
        return [
            NodeImage(row["image_type"], row["name"], self, extra=row)
            for row in _rows(self._call("GET", "/images", asked))
        ]

    def list_locations(self) -> list[NodeLocation]:
        """List all data centers; the id is their code, such as "FIN-01"."""
        return [
            NodeLocation(row["code"], row["name"], row["country_code"], self)
            for row in _rows(self._call("GET", "/locations"))
        ]

    def ex_availability(self, is_spot: bool = False, location: str | None = None) -> dict[str, list[str]]:
        """Return location code -> the instance types that are available there now."""
        asked = {"is_spot": str(is_spot).lower(), "location_code": location}
        rows = _rows(self._call("GET", "/instance-availability", asked))
        return {row["location_code"]: list(row["availabilities"]) for row in rows}

    def ex_balance(self) -> tuple[float, str]:
        """Return the account's balance, and its currency."""
        got = _one(self._call("GET", "/balance"))
        return float(got["amount"]), str(got["currency"])

    # Keys and scripts

    def list_key_pairs(self) -> list[KeyPair]:
        """List the account's SSH keys; ``extra["id"]`` is what `create_node` takes. Names need not be unique."""
        return [_to_key_pair(self, row) for row in _rows(self._call("GET", "/ssh-keys"))]

    def get_key_pair(self, name: str) -> KeyPair:
        """Return the first key with this name."""
        for pair in self.list_key_pairs():
            if pair.name == name:
                return pair
        raise KeyPairDoesNotExistError(name, self)

    def import_key_pair_from_string(self, name: str, key_material: str) -> KeyPair:
        """Add a public key to the account."""
        id = _new_id(self._call("POST", "/ssh-keys", body={"name": name, "key": key_material}))
        return _to_key_pair(self, {"id": id, "name": name, "key": key_material})

    def delete_key_pair(self, key_pair: KeyPair) -> bool:
        """Delete a key; instances that have it keep it."""
        self._call("DELETE", f"/ssh-keys/{segment(key_pair.extra['id'])}")
        return True

    def ex_list_startup_scripts(self) -> list[VerdaStartupScript]:
        """List the account's startup scripts. Everybody with the account's credentials can read them."""
        return [
            VerdaStartupScript(row["id"], row["name"], row["script"], _moment(row))
            for row in _rows(self._call("GET", "/scripts"))
        ]

    def ex_create_startup_script(self, name: str, script: str) -> VerdaStartupScript:
        """Add a script (bash, run as root, once, some time after sshd is up)."""
        id = _new_id(self._call("POST", "/scripts", body={"name": name, "script": script}))
        return VerdaStartupScript(id, name, script)

    def ex_delete_startup_script(self, script: VerdaStartupScript | str) -> bool:
        """Delete a script, or the one with this id; instances that were ordered with it are not affected."""
        id = script if isinstance(script, str) else script.id
        self._call("DELETE", f"/scripts/{segment(id)}")
        return True

    # Volumes

    def list_volumes(self, ex_trash: bool = False) -> list[StorageVolume]:
        """List all volumes, attached or not; with `ex_trash` also those that can still be restored."""
        rows = [*_rows(self._call("GET", "/volumes"))]
        if ex_trash:
            known = {row["id"] for row in rows}
            rows += [row for row in _rows(self._call("GET", "/volumes/trash")) if row["id"] not in known]
        return [_to_volume(self, row) for row in rows]

    def destroy_volume(self, volume: StorageVolume) -> bool:
        """Delete a volume permanently, from the trash too. Refused while it is attached."""
        self._call("DELETE", f"/volumes/{segment(volume.id)}", body={"is_permanent": True})
        return True

    # Calls and conversions

    def _ex_connection_class_kwargs(self) -> dict[str, Any]:
        return {"url": self._url, "api_version": self.api_version}

    def _call(self, method: str, path: str, params: Mapping[str, str | None] | None = None, body: Any = None) -> Any:
        asked = {key: value for key, value in (params or {}).items() if value is not None}
        data = None if body is None else json.dumps(body)
        return self.connection.request(path, params=asked, data=data, method=method).object

    def _row(self, node_id: str | None) -> dict[str, Any]:
        return _one(self._call("GET", f"/instances/{segment(node_id)}"))

    def _act(self, node_id: str | None, action: str, **how: Any) -> None:
        """Change one instance; a refusal may be inside of a successful reply (207)."""
        results = self._call("PUT", "/instances", body={"id": segment(node_id), "action": action, **how})
        for result in results or ():  # None: it is already in that state
            if result.get("status") == "error":
                raise refusal(int(result.get("statusCode") or 400), None, str(result.get("error")), {})


def _key_id(driver: VerdaNodeDriver, name: str, public_key: str) -> str:
    wanted = public_key.split()[:2]  # without the comment
    for pair in driver.list_key_pairs():
        if pair.public_key.split()[:2] == wanted:
            return str(pair.extra["id"])
    return str(driver.import_key_pair_from_string(name, public_key).extra["id"])


def _to_node(driver: VerdaNodeDriver, row: dict[str, Any]) -> Node:
    return Node(
        row["id"],
        row["hostname"],
        driver.NODE_STATE_MAP.get(row["status"], NodeState.UNKNOWN),
        [row["ip"]] if row.get("ip") else [],
        [row["private_ip"]] if row.get("private_ip") else [],
        driver,
        extra=row,
        created_at=_moment(row),
    )


def _to_size(driver: VerdaNodeDriver, row: dict[str, Any]) -> NodeSize:
    gpus = int(row["gpu"]["number_of_gpus"])
    extra = {
        **row,
        "cores": int(row["cpu"]["number_of_cores"]),
        "gpu_count": gpus,
        "gpu_model": (row.get("model") or row["gpu"]["description"]) if gpus else None,
        "gpu_memory_gb": float(row["gpu_memory"]["size_in_gigabytes"]) if gpus else 0.0,
        "spot_price": _price(row.get("spot_price")),
    }
    name = row.get("display_name") or row.get("name") or row["instance_type"]
    ram = int(float(row["memory"]["size_in_gigabytes"]) * 1024)
    price: Any = _price(
        row["price_per_hour"]
    )  # None, which libcloud's types do not allow, is better than a wrong price
    return NodeSize(row["instance_type"], name, ram, 0, None, price, driver, extra=extra)


def _to_key_pair(driver: VerdaNodeDriver, row: dict[str, Any]) -> KeyPair:
    return KeyPair(row["name"], row["key"], row.get("fingerprint") or "", driver, extra=row)


def _to_volume(driver: VerdaNodeDriver, row: dict[str, Any]) -> StorageVolume:
    state = driver.VOLUME_STATE_MAP.get(row["status"], StorageVolumeState.UNKNOWN)
    return StorageVolume(row["id"], row["name"], row["size"], driver, state=state, extra=row)


def _rows(reply: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(reply, list):
        raise MalformedResponseError("Verda's API returned something other than a list", body=str(reply)[:SHOWN])
    return reply


def _one(reply: Any) -> dict[str, Any]:
    if isinstance(reply, list) and len(reply) == 1:  # some resources come as an array of one
        reply = reply[0]
    if not isinstance(reply, dict):
        raise MalformedResponseError("Verda's API returned something other than an object", body=str(reply)[:SHOWN])
    return reply


def _new_id(reply: Any) -> str:
    """Return the id of what was created: the whole reply, or a field of it."""
    id = reply.get("id") if isinstance(reply, dict) else reply
    if not isinstance(id, str) or not id:
        what = "Verda's API answered a create without an id; what was created has to be found by name"
        raise MalformedResponseError(what, body=str(reply)[:SHOWN])
    return id


def _status(thing: StorageVolume) -> str:
    return str((thing.extra or {}).get("status"))


def _price(text: Any) -> float | None:
    """Return US dollars per hour; None if there is no price, or 0, the API's price of what it does not sell."""
    try:
        return float(text) or None
    except (TypeError, ValueError):
        return None


def _moment(row: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(row["created_at"])
    except (LookupError, TypeError, ValueError):
        return None
