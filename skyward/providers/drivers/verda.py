"""Verda (formerly DataCrunch) for apache-libcloud: the vendor's public API as a `NodeDriver`.

It knows libcloud and the standard library only. Like every libcloud driver it blocks, and one object serves one thread.
What the API has and libcloud has no word for lies in `extra`, as the API spells it.

Things that surprise: create has no idempotency token, so a reply that is lost leaves an instance which only its host
name or tags can find. Deleting is refused while an instance is starting (`VerdaStillProvisioningError`). Volumes live
on after their instance, and are billed, unless they are deleted with it.
"""

# libcloud says that it has types, but few of its functions do.
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
    """A script that an instance runs once, as root with bash, after its first boot."""

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
        Where the API is, if not at https://api.verda.com/v1.
    region
        Location code of new instances and volumes that are given no location.
    url
        Where the API is, in one, with its version: "http://127.0.0.1:8080/v1". Goes before host and port.
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
        """All instances, in any state, that are not deleted.

        Parameters
        ----------
        ex_status
            Only those in this state; "discontinued" shows deleted ones.
        ex_tag
            Only those with this (key, value).
        """
        asked = {"status": ex_status, "tag": None if ex_tag is None else "=".join(ex_tag)}
        return [self._node(row) for row in _rows(self._call("GET", "/instances", asked))]

    def ex_get_node(self, node_id: str) -> Node:
        """One instance, deleted ones too."""
        return self._node(self._row(node_id))

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
        """Order an instance and return at once; its state is PENDING and its address not known yet.

        Nothing is asked after the order, so that an id which the API gave is never lost to a second request's failure.

        Parameters
        ----------
        name
            The host name: letters, digits and hyphens, at least one letter.
        auth
            A `NodeAuthSSHKey`: is put among the account's keys, under the instance's name, if it is not there yet.
        ex_os_volume
            {"name", "size" (GB, 50 or more), "on_spot_discontinue"}. The last says what becomes of a spot instance's
            volume at its eviction: "keep_detached" (the default, and it is billed), "move_to_trash" or
            "delete_permanently".
        ex_contract
            Default: SPOT for spot instances, else PAY_AS_YOU_GO.
        """
        keys = list(ex_ssh_key_ids)
        if auth is not None:
            chosen: Any = self._get_and_check_auth(auth)
            keys.append(self._key_id(name, chosen.pubkey))
        order = {
            "instance_type": size.id,
            "image": image.id,
            "hostname": name,
            "description": ex_description or name,
            "location_code": self._location(location),
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
        return self._node(known)

    def destroy_node(self, node: Node) -> bool:
        """Delete an instance and all volumes attached to it, permanently.

        May be repeated: for an instance that is gone already it deletes what is left of its volumes.

        Raises
        ------
        VerdaStillProvisioningError
            It is starting: try again later, until it is accepted.
        VerdaNotFoundError
            There has never been such an instance, or it was forgotten.
        """
        now = self._row(node.id)
        volumes = sorted({now.get("os_volume_id"), *(now.get("volume_ids") or ())} - {None})
        if now["status"] not in {"discontinued", "notfound"}:
            # Without a list, the API's own choice is better than [], which would keep all of them.
            how = {"volume_ids": volumes, "delete_permanently": True} if volumes else {}
            with contextlib.suppress(VerdaAlreadyDiscontinuedError):
                self._act(node.id, "delete", **how)
                return True
        for volume in self.list_volumes(ex_trash=True):
            if volume.id in volumes and _status(volume) != "deleting":
                with contextlib.suppress(VerdaNotFoundError):
                    self.destroy_volume(volume)
        return True

    # What can be had

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """All instance types; `price` is dollars an hour for the whole machine.

        They are the same everywhere; where they can be had tells `ex_availability`. `disk` is 0 since the size of the
        OS volume is chosen with each order. `extra` has cores, gpu_model (None without a GPU), gpu_count, gpu_memory_gb
        (of all GPUs together), spot_price (None if there is none), currency and the API's other fields.
        """
        return [self._size(row) for row in _rows(self._call("GET", "/instance-types", {"currency": "usd"}))]

    def list_images(self, location: NodeLocation | None = None, ex_size: NodeSize | None = None) -> list[NodeImage]:
        """All images, or those that fit an instance type. The id is the image's type, such as "ubuntu-24.04"."""
        asked = {"instance_type": None if ex_size is None else ex_size.id}
        return [
            NodeImage(row["image_type"], row["name"], self, extra=row)
            for row in _rows(self._call("GET", "/images", asked))
        ]

    def list_locations(self) -> list[NodeLocation]:
        """All data centres; the id is their code, such as "FIN-01"."""
        return [
            NodeLocation(row["code"], row["name"], row["country_code"], self)
            for row in _rows(self._call("GET", "/locations"))
        ]

    def ex_availability(self, is_spot: bool = False, location: str | None = None) -> dict[str, list[str]]:
        """Location code -> the instance types that can be had there now."""
        asked = {"is_spot": str(is_spot).lower(), "location_code": location}
        rows = _rows(self._call("GET", "/instance-availability", asked))
        return {row["location_code"]: list(row["availabilities"]) for row in rows}

    def ex_balance(self) -> tuple[float, str]:
        """What the account has left, and its currency."""
        got = _one(self._call("GET", "/balance"))
        return float(got["amount"]), str(got["currency"])

    # Keys and scripts

    def list_key_pairs(self) -> list[KeyPair]:
        """The account's SSH keys; ``extra["id"]`` is what `create_node` takes. Several may have one name."""
        return [self._key_pair(row) for row in _rows(self._call("GET", "/ssh-keys"))]

    def get_key_pair(self, name: str) -> KeyPair:
        """The first key of this name."""
        for pair in self.list_key_pairs():
            if pair.name == name:
                return pair
        raise KeyPairDoesNotExistError(name, self)

    def import_key_pair_from_string(self, name: str, key_material: str) -> KeyPair:
        """Put a public key among the account's keys."""
        id = _new_id(self._call("POST", "/ssh-keys", body={"name": name, "key": key_material}))
        return self._key_pair({"id": id, "name": name, "key": key_material})

    def delete_key_pair(self, key_pair: KeyPair) -> bool:
        """Delete a key; instances that have it keep it."""
        self._call("DELETE", f"/ssh-keys/{segment(key_pair.extra['id'])}")
        return True

    def ex_list_startup_scripts(self) -> list[VerdaStartupScript]:
        """The account's startup scripts. Their text can be read by all who have the account's credentials."""
        return [
            VerdaStartupScript(row["id"], row["name"], row["script"], _moment(row))
            for row in _rows(self._call("GET", "/scripts"))
        ]

    def ex_create_startup_script(self, name: str, script: str) -> VerdaStartupScript:
        """Add a script (bash, run as root, once, some time after sshd is up)."""
        id = _new_id(self._call("POST", "/scripts", body={"name": name, "script": script}))
        return VerdaStartupScript(id, name, script)

    def ex_delete_startup_script(self, script: VerdaStartupScript | str) -> bool:
        """Delete a script, or the one with this id; instances that were ordered with it are not touched."""
        id = script if isinstance(script, str) else script.id
        self._call("DELETE", f"/scripts/{segment(id)}")
        return True

    # Volumes

    def list_volumes(self, ex_trash: bool = False) -> list[StorageVolume]:
        """All volumes, attached or not; with `ex_trash` also those that can still be restored."""
        rows = [*_rows(self._call("GET", "/volumes"))]
        if ex_trash:
            known = {row["id"] for row in rows}
            rows += [row for row in _rows(self._call("GET", "/volumes/trash")) if row["id"] not in known]
        return [self._volume(row) for row in rows]

    def ex_get_volume(self, volume_id: str) -> StorageVolume:
        """One volume."""
        return self._volume(_one(self._call("GET", f"/volumes/{segment(volume_id)}")))

    def destroy_volume(self, volume: StorageVolume) -> bool:
        """Delete a volume for good, from the trash too. Refused while an instance has it."""
        self._call("DELETE", f"/volumes/{segment(volume.id)}", body={"is_permanent": True})
        return True

    # Inside

    def _ex_connection_class_kwargs(self) -> dict[str, Any]:
        return {"url": self._url, "api_version": self.api_version}

    def _call(self, method: str, path: str, params: Mapping[str, str | None] | None = None, body: Any = None) -> Any:
        asked = {key: value for key, value in (params or {}).items() if value is not None}
        data = None if body is None else json.dumps(body)
        return self.connection.request(path, params=asked, data=data, method=method).object

    def _row(self, node_id: str | None) -> dict[str, Any]:
        return _one(self._call("GET", f"/instances/{segment(node_id)}"))

    def _act(self, node_id: str | None, action: str, **how: Any) -> None:
        """Do something to one instance; a refusal may stand in the reply (207) instead of being one."""
        results = self._call("PUT", "/instances", body={"id": segment(node_id), "action": action, **how})
        for result in results or ():  # nothing: it is in that state already
            if result.get("status") == "error":
                raise refusal(int(result.get("statusCode") or 400), None, str(result.get("error")), {})

    def _location(self, location: NodeLocation | None) -> str | None:
        return location.id if location is not None else self.region

    def _key_id(self, name: str, public_key: str) -> str:
        wanted = public_key.split()[:2]  # without the comment
        for pair in self.list_key_pairs():
            if pair.public_key.split()[:2] == wanted:
                return str(pair.extra["id"])
        return str(self.import_key_pair_from_string(name, public_key).extra["id"])

    def _node(self, row: dict[str, Any]) -> Node:
        return Node(
            row["id"],
            row["hostname"],
            self.NODE_STATE_MAP.get(row["status"], NodeState.UNKNOWN),
            [row["ip"]] if row.get("ip") else [],
            [row["private_ip"]] if row.get("private_ip") else [],
            self,
            extra=row,
            created_at=_moment(row),
        )

    def _size(self, row: dict[str, Any]) -> NodeSize:
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
        price: Any = _price(row["price_per_hour"])  # None is more than libcloud's types allow, and less than a lie
        return NodeSize(row["instance_type"], name, ram, 0, None, price, self, extra=extra)

    def _key_pair(self, row: dict[str, Any]) -> KeyPair:
        return KeyPair(row["name"], row["key"], row.get("fingerprint") or "", self, extra=row)

    def _volume(self, row: dict[str, Any]) -> StorageVolume:
        state = self.VOLUME_STATE_MAP.get(row["status"], StorageVolumeState.UNKNOWN)
        return StorageVolume(row["id"], row["name"], row["size"], self, state=state, extra=row)


def _rows(reply: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(reply, list):
        raise MalformedResponseError("Verda's API answered with something else than a list", body=str(reply)[:SHOWN])
    return reply


def _one(reply: Any) -> dict[str, Any]:
    if isinstance(reply, list) and len(reply) == 1:  # some resources come in an array of one
        reply = reply[0]
    if not isinstance(reply, dict):
        raise MalformedResponseError("Verda's API answered with something else than an object", body=str(reply)[:SHOWN])
    return reply


def _new_id(reply: Any) -> str:
    """The id of what was created: the whole reply, or in it."""
    id = reply.get("id") if isinstance(reply, dict) else reply
    if not isinstance(id, str) or not id:
        what = "Verda's API answered a create without an id; what it made has to be found by its name"
        raise MalformedResponseError(what, body=str(reply)[:SHOWN])
    return id


def _status(thing: StorageVolume) -> str:
    return str((thing.extra or {}).get("status"))


def _price(text: Any) -> float | None:
    """Dollars an hour; None if none is told, or 0, which the API says of what it does not sell."""
    try:
        return float(text) or None
    except (TypeError, ValueError):
        return None


def _moment(row: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(row["created_at"])
    except (LookupError, TypeError, ValueError):
        return None
