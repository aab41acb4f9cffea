"""Instances of EC2 in the lab: their state, what their metadata tell, and how they end themselves."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.lab import Host, LabError

from .ec2_shape import NAMESPACE, STATES
from .machines import Boot

__all__ = ["Machine", "add_shutdown", "as_launched", "is_off", "state_element", "without"]

_OFF = "run/powered-off"
_SHUTDOWN = f"""\
#!/bin/sh
# Tells the cloud that this machine is off: "-h now", "-P +5", "-c" (cancel) and the like.
when=now
case ${{0##*/}} in shutdown) when=+1 ;; esac
for word; do
    case $word in
    -c) kill "$(cat /run/shutdown.pid)"; exit ;;
    now | +*) when=$word ;;
    esac
done
[ "$(id -u)" = 0 ] || {{ echo "must be root" >&2; exit 1; }}
minutes=${{when#+}}
case $minutes in
now | 0) : >/{_OFF} ;;
*) setsid sh -c "echo \\$\\$ >/run/shutdown.pid; sleep $((minutes * 60)); : >/{_OFF}" </dev/null >/dev/null 2>&1 & ;;
esac
"""

ET.register_namespace("", NAMESPACE)


@dataclass
class Machine:
    """What the cloud knows of an instance besides moto."""

    instance: Any
    region: str
    seen_from: float
    public: bool
    boot: Boot | None = None
    gone_at: float = math.inf
    """When it is terminated, once it is shutting down."""
    taken_at: float = math.inf
    """When it is taken back."""
    notice: datetime | None = None
    price: float = 0.0
    limit: float = math.inf
    """Dollars an hour by the catalogue, and above which a spot instance is taken back."""
    volumes: dict[str, bool] = field(default_factory=dict)
    """Whether each ends with it."""

    @property
    def state(self) -> str:
        return str(self.instance._state.name)

    def turn(self, state: str, code: str = "", message: str = "") -> None:
        self.instance._state.name, self.instance._state.code = state, STATES[state]
        if code:
            from moto.ec2.models.instances import StateReason

            self.instance.state_reason = StateReason(f"{code}: {message}", code)
            self.instance._reason = f"{message} ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)"

    def metadata(self) -> dict[str, str]:
        """Path below ``/latest/`` -> what is there."""
        instance = self.instance
        told = {
            "instance-id": instance.id,
            "instance-type": instance.instance_type,
            "instance-life-cycle": instance.lifecycle or "on-demand",
            "ami-id": instance.image_id,
            "local-ipv4": instance.private_ip,
            "public-ipv4": instance.public_ip or "",
            "placement/availability-zone": instance.availability_zone,
            "placement/region": self.region,
        }
        if self.notice is not None:
            when = f"{self.notice:%Y-%m-%dT%H:%M:%SZ}"
            told["spot/instance-action"] = json.dumps({"action": "terminate", "time": when})
            told["spot/termination-time"] = when
        told = {f"meta-data/{name}": value for name, value in told.items()}
        if instance.user_data:
            told["user-data"] = base64.b64decode(str(instance.user_data)).decode()
        return told


def state_element(element: str, name: str) -> str:
    return f"<{element}><code>{STATES[name]}</code><name>{name}</name></{element}>"


def as_launched(body: bytes, machines: Mapping[str, Machine]) -> bytes:
    """moto's reply to a launch without the addresses, which come later, and with the spot requests."""
    root = ET.fromstring(body)
    for item in root.iter(f"{{{NAMESPACE}}}item"):
        id = item.findtext(f"{{{NAMESPACE}}}instanceId")
        if id is None:
            continue
        for name in ("ipAddress", "dnsName", "networkInterfaceSet"):
            for element in item.findall(f"{{{NAMESPACE}}}{name}"):
                item.remove(element)
        request = getattr(machines[id].instance, "spot_instance_request_id", None)
        if request is not None and item.find(f"{{{NAMESPACE}}}spotInstanceRequestId") is None:
            ET.SubElement(item, f"{{{NAMESPACE}}}spotInstanceRequestId").text = request
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def without(body: bytes, hidden: set[str]) -> bytes:
    """A list of instances without some; a reservation without any is gone too."""
    root = ET.fromstring(body)
    for reservations in root.findall(f"{{{NAMESPACE}}}reservationSet"):
        for reservation in list(reservations):
            for instances in reservation.findall(f"{{{NAMESPACE}}}instancesSet"):
                for instance in list(instances):
                    if instance.findtext(f"{{{NAMESPACE}}}instanceId") in hidden:
                        instances.remove(instance)
                if not len(instances):
                    reservations.remove(reservation)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def add_shutdown(host: Host) -> None:
    """Give a host the commands that end it; there is no init system in it that would know them."""
    for place in ("usr/sbin/shutdown", "usr/sbin/poweroff", "usr/sbin/halt"):
        program = host.root / place
        program.unlink(missing_ok=True)
        program.write_text(_SHUTDOWN)
        program.chmod(0o755)


def is_off(host: Host | None) -> bool:
    if host is None:
        return False
    with contextlib.suppress(LabError, OSError):
        return (host.root / _OFF).exists()
    return False  # its plug was pulled, of which a cloud learns nothing
