"""What a Verda account holds besides instances: SSH keys, startup scripts and volumes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import flask

from .meter import Meter
from .verda_catalogue import VOLUME_TYPES
from .verda_reply import Refusal, Row, bare, body, invalid, now

__all__ = ["Texts", "Volumes", "check_key"]

_PUBLIC_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/=]+( .*)?")
_PRICES = {row["type"]: row["price"]["price_per_month_per_gb"] for row in VOLUME_TYPES}
_MONTH = 730  # hours


def check_key(row: Row) -> None:
    """Refuse what is not a public key, else add what the API tells of one."""
    if not _PUBLIC_KEY.fullmatch(row["key"].strip()):
        raise invalid("Invalid SSH key")
    row["fingerprint"] = f"SHA256:{uuid.uuid5(uuid.NAMESPACE_OID, row['key']).hex}"


class Texts:
    """Keys or scripts: they have a name and one text."""

    def __init__(self, meter: Meter, kind: str, check: Callable[[Row], None] | None = None) -> None:
        self._meter, self._kind, self._check = meter, kind, check
        self.rows: dict[str, Row] = {}

    def all(self) -> list[Row]:
        return list(self.rows.values())

    def one(self, id: str) -> list[Row]:
        return [self._find(id)]

    def add(self) -> flask.Response:
        order = body()
        missing = [part for part in ("name", self._kind) if not str(order.get(part) or "").strip()]
        if missing:
            raise invalid([f"{part} should not be empty" for part in missing])
        row = {"id": str(uuid.uuid4()), "name": order["name"], self._kind: order[self._kind], "created_at": now()}
        if self._check is not None:
            self._check(row)
        self.rows[row["id"]] = row
        self._meter.begin(self._kind, row["id"])
        return bare(row["id"], 201)

    def remove(self, id: str) -> flask.Response:
        self._find(id)
        return self._remove([id])

    def remove_several(self) -> flask.Response:
        ids = body().get(f"{self._kind}s")
        if not isinstance(ids, list) or not ids:
            raise invalid(f"{self._kind}s should not be empty")
        return self._remove(ids)

    def _remove(self, ids: list[str]) -> flask.Response:
        for id in ids:
            if self.rows.pop(id, None) is not None:
                self._meter.end(self._kind, id)
        return flask.Response(status=200)

    def _find(self, id: str) -> Row:
        if id not in self.rows:
            raise Refusal(404, "not_found", f"Invalid {self._kind} id")
        return self.rows[id]


class Volumes:
    """Volumes, those of systems too; those in the trash have the status "deleted".

    Parameters
    ----------
    in_use
        Whether the instance with this id holds its volumes fast.
    """

    def __init__(self, meter: Meter, in_use: Callable[[str], bool]) -> None:
        self._meter, self._in_use = meter, in_use
        self.rows: dict[str, Row] = {}

    def all(self) -> list[Row]:
        status = flask.request.args.get("status")
        rows = self.rows.values()
        return [row for row in rows if (row["status"] == status if status else row["status"] != "deleted")]

    def trash(self) -> list[Row]:
        return [row for row in self.rows.values() if row["status"] == "deleted"]

    def one(self, id: str) -> Row:
        return self._find(id, 404)

    def create(self) -> flask.Response:
        order = body()
        if order.get("type") not in _PRICES:
            raise invalid("Invalid volume type")
        if not order.get("name") or not isinstance(order.get("size"), int) or order["size"] < 1:
            raise invalid(["name should not be empty", "size must be a positive number"])
        if order.get("instance_id") is not None:
            raise invalid("Instance must be shut down")
        place = order.get("location_code") or "FIN-03"
        return bare(self.add(order["name"], order["size"], place, order["type"])["id"], 202)

    def act(self) -> flask.Response:
        order = body()
        for id in order["id"] if isinstance(order.get("id"), list) else [order.get("id")]:
            volume, action = self._find(id), order.get("action")
            if action == "delete":
                self._delete_free(volume, permanently=bool(order.get("is_permanent")))
            elif action == "rename" and order.get("name"):
                volume["name"] = order["name"]
            elif action == "resize" and int(order.get("size") or 0) > volume["size"]:
                volume["size"] = int(order["size"])
            else:
                raise invalid("Invalid action")
        return flask.Response(status=202)

    def remove(self, id: str) -> flask.Response:
        order = body() if flask.request.data else {}
        forced = flask.request.args.get("force") == "true"  # as the Go client says it
        self._delete_free(self._find(id, 404), permanently=bool(order.get("is_permanent")) or forced)
        return flask.Response(status=202)

    def add(self, name: str, size: int, place: str, kind: str = "NVMe", *, is_os_volume: bool = False) -> Row:
        """A new volume, which is billed from now on."""
        month = size * _PRICES[kind]
        row = {
            "id": str(uuid.uuid4()),
            "status": "detached",
            "name": name,
            "size": size,
            "type": kind,
            "is_os_volume": is_os_volume,
            "created_at": now(),
            "target": None,
            "location": place,
            "instance_id": None,
            "instances": [],
            "ssh_key_ids": [],
            "contract": "PAY_AS_YOU_GO",
            "base_hourly_cost": month / _MONTH,
            "monthly_price": month,
            "currency": "usd",
            "long_term": None,
            "pseudo_path": None,
            "mount_command": None,
            "create_directory_command": None,
            "filesystem_to_fstab_command": None,
        }
        self.rows[row["id"]] = row
        self._meter.begin("volume", row["id"], month / _MONTH)
        return row

    def delete(self, volume: Row, *, permanently: bool) -> None:
        """Put it into the trash, where it still clutters the account, or delete it for good."""
        if volume["status"] == "deleted":
            if permanently:
                self._meter.end("trash", volume["id"])
        else:
            self._meter.end("volume", volume["id"])
            if not permanently:
                self._meter.begin("trash", volume["id"])
        volume.update(status="deleted", deleted_at=now(), instance_id=None, target=None)
        if permanently:
            del self.rows[volume["id"]]

    def _delete_free(self, volume: Row, *, permanently: bool) -> None:
        if volume["instance_id"] is not None and self._in_use(volume["instance_id"]):
            raise invalid("Volume is attached to an instance that is not shut down")
        self.delete(volume, permanently=permanently)

    def _find(self, id: Any, status: int = 400) -> Row:
        if id not in self.rows:
            raise Refusal(status, "not_found" if status == 404 else "invalid_request", "Invalid volume id")
        return self.rows[id]
