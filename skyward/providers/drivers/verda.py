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
from typing import Any

from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import KeyPair, Node, NodeDriver, NodeImage, NodeLocation, NodeSize, StorageVolume
from libcloud.compute.types import NodeState

from .json_api import SHOWN
from .verda_connection import (
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


class VerdaNodeDriver(NodeDriver):
    """Verda's instances, instance types, images, keys, startup scripts and volumes.

    Parameters
    ----------
    key, secret
        The client id and the client secret.
    url
        Where the API is, with its version: "http://127.0.0.1:8080/v1"; None: https://api.verda.com/v1.
    options
        ``timeout`` (seconds), ``proxy_url`` and other keywords of libcloud's drivers.
    """

    name = "Verda"
    connectionCls = VerdaConnection  # noqa: N815 (libcloud's name)

    NODE_STATE_MAP = {  # noqa: RUF012 (so declared by libcloud)
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

    def __init__(self, key: str, secret: str, url: str | None = None, **options: Any) -> None:
        if not key or not secret:
            raise InvalidCredsError("Verda needs a client id (key) and a client secret (secret)")
        self._url = url
        super().__init__(key, secret, **options)

    # Instances

    def list_nodes(self) -> list[Node]:
        """List all instances, in any state, that are not deleted."""
        return [_to_node(self, row) for row in _rows(self._call("GET", "/instances"))]

    def ex_get_node(self, node_id: str) -> Node:
        """Return one instance, even a deleted one."""
        return _to_node(self, self._row(node_id))

    def create_node(  # type: ignore[override]  # keywords beyond libcloud's, as all drivers have
        self,
        name: str,
        size: NodeSize,
        image: NodeImage,
        location: NodeLocation,
        ex_ssh_key_ids: Sequence[str] = (),
        ex_startup_script_id: str | None = None,
        ex_is_spot: bool = False,
        ex_os_volume: Mapping[str, Any] | None = None,
        ex_description: str | None = None,
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
            Where; only its id is used.
        ex_ssh_key_ids
            Ids of those keys of the account that may log in.
        ex_startup_script_id
            A script of the account to run at the first boot.
        ex_is_spot
            Whether the instance may be evicted.
        ex_os_volume
            {"name", "size" (GB, 50 or more), "on_spot_discontinue"}. The last decides what happens to a spot instance's
            volume when it is evicted: "keep_detached" (the default, and it is billed), "move_to_trash" or
            "delete_permanently".
        ex_description
            For people; the name by default.
        """
        order = {
            "instance_type": size.id,
            "image": image.id,
            "hostname": name,
            "description": ex_description or name,
            "location_code": location.id,
            "ssh_key_ids": list(ex_ssh_key_ids),
            "startup_script_id": ex_startup_script_id,
            "is_spot": ex_is_spot,
            "contract": "SPOT" if ex_is_spot else "PAY_AS_YOU_GO",
            "os_volume": None if ex_os_volume is None else dict(ex_os_volume),
        }
        order = {key: value for key, value in order.items() if value is not None}
        id = _new_id(self._call("POST", "/instances", body=order))
        known = {"id": id, "status": "ordered", "ip": None, "location": location.id, **order}
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
        for volume in self.list_volumes():
            if volume.id in volumes and (volume.extra or {}).get("status") != "deleting":
                with contextlib.suppress(VerdaNotFoundError):
                    self.destroy_volume(volume)
        return True

    # Instance types and images

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """List all instance types; `price` is US dollars per hour for the whole machine.

        They are the same everywhere; `ex_availability` says where they are available. `disk` is 0 since the size of the
        OS volume is part of each order. `extra` has cores, gpu_model (None without a GPU), gpu_count, gpu_memory_gb (of
        all GPUs together), spot_price (None if there is none), currency and the API's other fields.
        """
        return [_to_size(self, row) for row in _rows(self._call("GET", "/instance-types", {"currency": "usd"}))]

    def ex_volume_price(self) -> float | None:
        """Return what a GB of an OS volume costs, in US dollars per month; None if the API does not say."""
        for row in _rows(self._call("GET", "/volume-types")):
            if row["type"] == "NVMe" and str(row["price"].get("currency", "usd")).lower() == "usd":
                return _price(row["price"].get("price_per_month_per_gb"))
        return None

    def list_images(self, location: NodeLocation | None = None, ex_size: NodeSize | None = None) -> list[NodeImage]:
        """List all images, or those that fit an instance type. The id is the image's type, such as "ubuntu-24.04"."""
        rows = _rows(self._call("GET", "/images", {"instance_type": None if ex_size is None else ex_size.id}))
        return [NodeImage(row["image_type"], row["name"], self, extra=row) for row in rows]

    def ex_availability(self, is_spot: bool) -> dict[str, list[str]]:
        """Return location code -> the instance types that are available there now."""
        rows = _rows(self._call("GET", "/instance-availability", {"is_spot": str(is_spot).lower()}))
        return {row["location_code"]: list(row["availabilities"]) for row in rows}

    def ex_balance(self) -> tuple[float, str]:
        """Return the account's balance, and its currency."""
        got = _one(self._call("GET", "/balance"))
        return float(got["amount"]), str(got["currency"])

    # Keys and scripts

    def list_key_pairs(self) -> list[KeyPair]:
        """List the account's SSH keys; ``extra["id"]`` is what `create_node` takes. Names need not be unique."""
        return [_to_key_pair(self, row) for row in _rows(self._call("GET", "/ssh-keys"))]

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
            VerdaStartupScript(row["id"], row["name"], row["script"]) for row in _rows(self._call("GET", "/scripts"))
        ]

    def ex_create_startup_script(self, name: str, script: str) -> VerdaStartupScript:
        """Add a script (bash, run as root, once, some time after sshd is up)."""
        id = _new_id(self._call("POST", "/scripts", body={"name": name, "script": script}))
        return VerdaStartupScript(id, name, script)

    def ex_delete_startup_script(self, script: VerdaStartupScript) -> bool:
        """Delete a script; instances that were ordered with it are not affected."""
        self._call("DELETE", f"/scripts/{segment(script.id)}")
        return True

    # Volumes

    def list_volumes(self) -> list[StorageVolume]:
        """List all volumes: attached or not, and those in the trash, which can still be restored."""
        paths = ("/volumes", "/volumes/trash")  # in this order, so that none is missed that is moved meanwhile
        rows = {row["id"]: row for path in paths for row in _rows(self._call("GET", path))}
        return [StorageVolume(row["id"], row["name"], row["size"], self, extra=row) for row in rows.values()]

    def destroy_volume(self, volume: StorageVolume) -> bool:
        """Delete a volume permanently, from the trash too. Refused while it is attached."""
        self._call("DELETE", f"/volumes/{segment(volume.id)}", body={"is_permanent": True})
        return True

    # Calls and conversions

    def _ex_connection_class_kwargs(self) -> dict[str, Any]:
        return {"url": self._url}

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


def _to_node(driver: VerdaNodeDriver, row: dict[str, Any]) -> Node:
    return Node(
        row["id"],
        row["hostname"],
        driver.NODE_STATE_MAP.get(row["status"], NodeState.UNKNOWN),
        [row["ip"]] if row.get("ip") else [],
        [row["private_ip"]] if row.get("private_ip") else [],
        driver,
        extra=row,
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


def _price(text: Any) -> float | None:
    """Return US dollars; None if there is no price, or 0, the API's price of what it does not sell."""
    try:
        return float(text) or None
    except (TypeError, ValueError):
        return None
