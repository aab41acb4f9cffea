"""AWS's EC2 (and STS as far as saying who one is), by moto with what it lacks, with hosts of the lab as instances.

Signatures and tokens are checked. Instances take their time to end, hold their security group until then, end when they
are shut down from inside, and can be taken back as spot instances are. Client tokens, paging, spot prices, capacity and
quota are AWS's. Where AWS's documents do not tell a text it is as people have shown it in public.
"""

from __future__ import annotations

import base64
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from .aws import AWS, Call, Refusal, hexadecimal
from .cloud_init import boot_image
from .ec2_catalogue import on_demand_price, spot_price, user_of
from .ec2_instances import Machine, add_shutdown, as_launched, is_off, state_element, without
from .ec2_launch import check, image_of, subnet_in, why_not, with_volumes, zone_of
from .ec2_market import listed, offerings, spot_history, type_names
from .ec2_metadata import add_metadata
from .ec2_shape import reply
from .machines import Boot, Machines

__all__ = ["EC2"]

_ID = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_GP3 = 0.08 / 730  # dollars a GiB and hour
_TICK = 0.05


class EC2(AWS):
    """The service at `url`, for all regions and one account. One at a time in a process.

    Parameters
    ----------
    machines
        As for every cloud; hosts have the image's default user ("ubuntu", …), who may sudo.
    ending
        Seconds from shutting-down to terminated.

    Attributes
    ----------
    capacity
        (type or "*", zone or "*") -> how many more there are; nothing said: enough.
    surge
        Factor on the catalogue's spot prices. Those whose limit is passed lose their instances.
    caller
        Address that the service which tells callers theirs (at ``/checkip``) has seen.
    """

    def __init__(self, machines: Machines | None = None, *, ending: float = 0.3) -> None:
        self.ending = ending
        self.capacity: dict[tuple[str, str], int] = {}
        self.surge = 1.0
        self.caller = "203.0.113.1"
        self._machines: dict[str, Machine] = {}
        self._launches: dict[tuple[str, str], tuple[dict[str, str], bytes]] = {}
        self._closing = threading.Event()
        super().__init__(machines)
        self._ticker = threading.Thread(target=self._tick, name="ec2-ticker")
        self._ticker.start()

    def routes(self) -> None:
        """The API and instance metadata."""
        super().routes()
        add_metadata(self.app, self._metadata)
        self.app.add_url_rule("/checkip", "checkip", lambda: f"{self.caller}\n")

    def close(self) -> None:
        """Stop all; may be repeated."""
        if not self._closing.is_set():
            self._closing.set()
            self._ticker.join()
            super().close()

    def boots(self) -> dict[str, Boot]:
        """The machines behind the instances that are not terminated, by id."""
        with self.lock:
            return {id: m.boot for id, m in self._machines.items() if m.boot is not None and m.state != "terminated"}

    def evict(self, id: str, *, notice: float = 120.0) -> None:
        """Take a spot instance back in `notice` seconds, of which its metadata tell from now on."""
        with self.lock:
            machine = self._machines[id]
            assert machine.instance.lifecycle == "spot", f"{id} is no spot instance"
            machine.notice = datetime.now(UTC) + timedelta(seconds=notice)
            machine.taken_at = time.monotonic() + notice

    def handlers(self) -> Mapping[tuple[str, str], Callable[[Call], bytes]]:
        """What moto can not, or not well."""
        return {
            ("ec2", "RunInstances"): self._run,
            ("ec2", "TerminateInstances"): self._terminate,
            ("ec2", "DescribeInstances"): self._describe,
            ("ec2", "StopInstances"): self._stop,
            ("ec2", "StartInstances"): self._no_start,
            ("ec2", "DescribeInstanceTypes"): self._types,
            ("ec2", "DescribeInstanceTypeOfferings"): lambda call: offerings(call.fields, call.region),
            ("ec2", "DescribeSpotPriceHistory"): lambda call: spot_history(call.fields, call.region, self.surge),
            ("ec2", "CreateTags"): self._create_tags,
            ("ec2", "CreateSecurityGroup"): self._create_group,
            ("ec2", "AuthorizeSecurityGroupIngress"): self._authorize,
            ("ec2", "DeleteSecurityGroup"): self._delete_group,
            ("ec2", "DeleteVolume"): self._delete_volume,
        }

    # Launching

    def _run(self, call: Call) -> bytes:
        fields = {name: value for name, value in call.fields.items() if name not in {"Action", "Version"}}
        token = fields.pop("ClientToken", "")
        known = self._launches.get((call.region, token)) if token else None
        if known is not None:
            if known[0] != fields:
                message = (
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                )
                raise Refusal(400, "IdempotentParameterMismatch", message)
            return known[1]
        backend = self.moto.backend(call.region)
        image, zone = image_of(call, backend), zone_of(call, backend)
        check(call, image, zone, self.surge)
        count = self._grant(call, zone)
        given = with_volumes(call.fields, image)
        given |= subnet_in(zone, call.fields, backend)
        given |= {"ImageId": image.id, "MinCount": str(count), "MaxCount": str(count)}
        body = self.moto_answers(Call(call.service, call.region, call.action, given))
        data = base64.b64decode(call.fields.get("UserData", "")).decode()
        spot = call.fields.get("InstanceMarketOptions.MarketType") == "spot"
        for id in re.findall(r"<instanceId>(i-[0-9a-f]+)<", body.decode()):
            self._begin(id, call, image, spot, data)
        body = as_launched(body, self._machines)
        if token:
            self._launches[call.region, token] = fields, body
        return body

    def _grant(self, call: Call, zone: str) -> int:
        """How many instances there will be."""
        least, most = int(call.fields.get("MinCount", 0)), int(call.fields.get("MaxCount", 0))
        if not 1 <= least <= most:
            raise Refusal(400, "InvalidParameterValue", f"Value ({most}) for parameter MaxCount is invalid.")
        type, spot = call.fields["InstanceType"], "InstanceMarketOptions.MarketType" in call.fields
        if self.faults.take("quota") is not None:
            raise why_not(type, zone, spot=spot, quota=True)
        keys = [key for key in ((type, zone), (type, "*"), ("*", zone), ("*", "*")) if key in self.capacity]
        free = min([most, *(self.capacity[key] for key in keys)])
        if self.faults.take("no_capacity") is not None or free < least:
            raise why_not(type, zone, spot=spot, quota=False)
        for key in keys:
            self.capacity[key] -= free
        return free

    def _begin(self, id: str, call: Call, image: Any, spot: bool, data: str) -> None:
        """Boot the machine of an instance that moto has."""
        instance = self.moto.backend(call.region).get_instance(id)
        eventual = self.faults.take("eventual")
        seen_from = time.monotonic() + float((eventual or {}).get("seconds", 0.0))
        machine = Machine(instance, call.region, seen_from, instance.nics[0].public_ip is not None)
        self._machines[id] = machine
        machine.turn("pending")
        instance.nics[0].public_ip = None
        instance.nics[0].delete_on_termination = True
        price = on_demand_price(instance.instance_type, call.region)
        if spot:
            machine.limit = float(call.fields.get("InstanceMarketOptions.SpotOptions.MaxPrice", price))
            price = spot_price(instance.instance_type, instance.availability_zone)
            instance.spot_instance_request_id = f"sir-{hexadecimal(8)}"
        machine.price = price
        self.meter.begin("instance", id, price)
        for device in instance.block_device_mapping.values():
            machine.volumes[device.volume_id] = bool(device.delete_on_termination)
            self.meter.begin("volume", device.volume_id, int(device.size or 8) * _GP3)
        if self.faults.take("fails_to_start") is not None:
            self._end(machine, "Server.InternalError", "Internal error on launch")
            return
        # The lock is held: the machine's thread waits in `_running` until it has its place.
        machine.boot = boot_image(
            self.machines,
            self.faults,
            data,
            default_user=user_of(image.name),
            hostname=instance.private_dns_name.split(".")[0],
            on_power=lambda: self._running(machine),
        )

    def _running(self, machine: Machine) -> None:
        """It is switched on: give it its address and the means to end itself."""
        with self.lock:
            boot = machine.boot
            if boot is None or machine.state != "pending":
                return
            if boot.host is not None:
                add_shutdown(boot.host)
            if machine.public:
                machine.instance.nics[0].public_ip = boot.address
            else:
                machine.instance.nics[0].private_ip_address = boot.address
            machine.turn("running")

    # Ending

    def _find(self, call: Call) -> list[Machine]:
        """The machines with the ids of a request, all of which must exist."""
        ids = listed(call.fields, "InstanceId")
        malformed = [id for id in ids if _ID.fullmatch(id) is None]
        if malformed:
            raise Refusal(400, "InvalidInstanceID.Malformed", f'Invalid id: "{malformed[0]}"')
        now = time.monotonic()
        found = {id: m for id, m in self._machines.items() if m.region == call.region and m.seen_from <= now}
        unknown = [id for id in ids if id not in found]
        if unknown:
            what = f"ID '{unknown[0]}' does" if len(unknown) == 1 else f"IDs '{', '.join(unknown)}' do"
            raise Refusal(400, "InvalidInstanceID.NotFound", f"The instance {what} not exist")
        return [found[id] for id in ids]

    def _terminate(self, call: Call) -> bytes:
        items = []
        for machine in self._find(call):
            before = machine.state
            self._end(machine, "Client.UserInitiatedShutdown", "User initiated shutdown")
            changed = state_element("currentState", machine.state) + state_element("previousState", before)
            items.append(f"<item><instanceId>{machine.instance.id}</instanceId>{changed}</item>")
        return reply("TerminateInstances", f"<instancesSet>{''.join(items)}</instancesSet>")

    def _end(self, machine: Machine, code: str, message: str) -> None:
        if machine.state in {"shutting-down", "terminated"}:
            return
        machine.turn("shutting-down", code, message)
        machine.gone_at = time.monotonic() + self.ending
        self.meter.end("instance", machine.instance.id)
        if machine.boot is not None:
            self.machines.end(machine.boot)

    def _bury(self, machine: Machine) -> None:
        """It is gone: moto takes its interface and volumes away."""
        machine.gone_at = math.inf
        reason, said = machine.instance.state_reason, machine.instance._reason
        machine.instance.terminate()
        machine.instance.state_reason, machine.instance._reason = reason, said
        for volume, ends in machine.volumes.items():
            if ends:
                self.meter.end("volume", volume)

    def _tick(self) -> None:
        """What happens without anybody asking."""
        while not self._closing.wait(_TICK):
            now = time.monotonic()
            with self.lock:
                for machine in self._machines.values():
                    if machine.gone_at <= now:
                        self._bury(machine)
                    if machine.taken_at <= now or machine.price * self.surge > machine.limit:
                        self._end(machine, "Server.SpotInstanceTermination", "Spot instance termination")
                    if machine.boot is not None and is_off(machine.boot.host):
                        self._power_off(machine)

    def _power_off(self, machine: Machine) -> None:
        code, message = "Client.InstanceInitiatedShutdown", "Instance initiated shutdown"
        if machine.instance.instance_initiated_shutdown_behavior == "terminate":
            self._end(machine, code, message)
        elif machine.state == "running":
            self._halt(machine, code, message)

    def _halt(self, machine: Machine, code: str, message: str) -> None:
        machine.turn("stopped", code, message)
        self.meter.end("instance", machine.instance.id)
        if machine.boot is not None:
            self.machines.end(machine.boot)

    def _stop(self, call: Call) -> bytes:
        found = self._find(call)
        body = self.moto_answers(call)
        for machine in found:
            self._halt(machine, "Client.UserInitiatedShutdown", "User initiated shutdown")
        return body

    def _no_start(self, call: Call) -> bytes:
        raise Refusal(400, "UnsupportedOperation", "The lab starts no instance again")

    # Seeing

    def _describe(self, call: Call) -> bytes:
        self._find(call)
        body = self.moto_answers(call)
        now = time.monotonic()
        hidden = {id for id, machine in self._machines.items() if machine.seen_from > now}
        return without(body, hidden) if hidden else body

    def _types(self, call: Call) -> bytes:
        names, token = type_names(call.fields, call.region, self.moto.backend(call.region))
        if not names:
            return reply(call.action, f"<instanceTypeSet/>{token}")
        fields = {"Action": call.action, "Version": call.fields.get("Version", "2016-11-15")}
        fields |= {f"InstanceType.{number}": name for number, name in enumerate(names, 1)}
        body = self.moto_answers(Call(call.service, call.region, call.action, fields))
        return body.replace(b"</instanceTypeSet>", b"</instanceTypeSet>" + token.encode())

    def _metadata(self, address: str) -> Mapping[str, str] | None:
        with self.lock:
            live = [m for m in self._machines.values() if m.state == "running" and m.boot is not None]
            machine = next((m for m in live if m.boot is not None and m.boot.address == address), None)
            if machine is None:
                return None
            return machine.metadata()

    # Other resources

    def _create_tags(self, call: Call) -> bytes:
        now = time.monotonic()
        for id in listed(call.fields, "ResourceId"):
            if id in self._machines and self._machines[id].seen_from > now:
                raise Refusal(400, "InvalidInstanceID.NotFound", f"The instance ID '{id}' does not exist")
        return self.moto_answers(call)

    def _create_group(self, call: Call) -> bytes:
        body = self.moto_answers(call)
        found = re.search(r"<groupId>(sg-[0-9a-f]+)<", body.decode())
        assert found is not None
        self.meter.begin("security group", found[1])
        return body

    def _authorize(self, call: Call) -> bytes:
        if self.faults.take("unready_group") is not None:
            message = f"The security group '{call.fields['GroupId']}' does not exist"
            raise Refusal(400, "InvalidGroup.NotFound", message)
        return self.moto_answers(call)

    def _delete_group(self, call: Call) -> bytes:
        id = call.fields.get("GroupId", "")
        if not id:
            raise Refusal(400, "MissingParameter", "The request must contain the parameter GroupId (in the lab)")
        for machine in self._machines.values():
            groups = {group.id for nic in machine.instance.nics.values() for group in nic.group_set}
            if machine.state != "terminated" and id in groups | {g.id for g in machine.instance.security_groups}:
                raise Refusal(400, "DependencyViolation", f"resource {id} has a dependent object")
        if id not in self.meter.ever("security group") and id in _default_groups(self.moto.backend(call.region)):
            raise Refusal(
                400, "CannotDelete", f'the specified group: "{id}" name: "default" cannot be deleted by a user'
            )
        body = self.moto_answers(call)
        self.meter.end("security group", id)
        return body

    def _delete_volume(self, call: Call) -> bytes:
        body = self.moto_answers(call)
        self.meter.end("volume", call.fields["VolumeId"])
        return body


def _default_groups(backend: Any) -> set[str]:
    """Groups that came with their VPC."""
    return {id for groups in backend.groups.values() for id, group in groups.items() if group.name == "default"}
