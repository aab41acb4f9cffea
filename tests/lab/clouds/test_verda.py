"""The lab's Verda, seen by the vendor's own client: what that client accepts here it accepts there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from verda import VerdaClient
from verda.exceptions import APIException
from verda.instances import Instance, OSVolume

from tests.lab import Host, Lab, LabError, eventually
from tests.lab.clouds import Machines
from tests.lab.clouds.verda import Verda
from tests.lab.seed import make_key

pytestmark = pytest.mark.slow  # what it tests is the lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8b3mJ0Q9jQpXo7rT0p2Y8m8dQm3hZz0Wm9c4gq3b1x me@here"
CPU = "CPU.4V.16G"


@pytest.fixture
def cloud() -> Iterator[Verda]:
    with Verda() as running:
        yield running


@pytest.fixture
def client(cloud: Verda) -> VerdaClient:
    return connect(cloud)


def connect(cloud: Verda) -> VerdaClient:
    return VerdaClient(cloud.client_id, cloud.client_secret, cloud.base_url)


def create(client: VerdaClient, hostname: str = "sky-1", **options) -> Instance:
    order = {
        "instance_type": CPU,
        "image": "ubuntu-24.04",
        "hostname": hostname,
        "description": "a test",
        "location": "FIN-01",
        "initial_interval": 0.01,
        **options,
    }
    return client.instances.create(**order)


def running(client: VerdaClient, id: str, timeout: float = 10.0) -> Instance:
    def seen() -> Instance | None:
        now = client.instances.get_by_id(id)
        return now if now.status == "running" else None

    return eventually(seen, timeout)


def delete(client: VerdaClient, instance: Instance) -> None:
    client.instances.action(instance.id, "delete", volume_ids=[instance.os_volume_id], delete_permanently=True)


def refused(code: str, message: str = ""):
    return pytest.raises(APIException, match=rf"(?s){code}.*{message}")


def test_the_catalogue(client):
    types = {known.instance_type: known for known in client.instance_types.get()}
    assert (types[CPU].price_per_hour, types[CPU].spot_price_per_hour) == (0.0279, 0.0139)
    assert types["8V100.48V"].gpu == {"description": "8x V100 16GB", "number_of_gpus": 8}
    assert [place["code"] for place in client.locations.get()] == ["FIN-01", "FIN-02", "FIN-03", "ICE-01"]
    assert {known.type for known in client.volume_types.get()} == {"NVMe", "HDD", "NVMe_Shared"}
    assert len(client.images.get(CPU)) < len(client.images.get())
    assert client.balance.get().amount == 100.5


def test_availability(cloud, client):
    assert client.instances.is_available(CPU)
    assert client.instances.is_available("1H100.80S.22V", is_spot=True, location_code="ICE-01")
    assert not client.instances.is_available("1A100.22V", is_spot=True)
    assert not client.instances.is_available("8V100.48V")
    everywhere = {row["location_code"]: row["availabilities"] for row in client.instances.get_availabilities()}
    spot = {row["location_code"]: row["availabilities"] for row in client.instances.get_availabilities(is_spot=True)}
    assert "1A100.22V" in everywhere["FIN-01"]
    assert "1A100.22V" not in spot["FIN-01"]
    cloud.sold_out.add((CPU, "FIN-01"))
    assert not client.instances.is_available(CPU, location_code="FIN-01")


def test_keys_and_scripts(cloud, client):
    key = client.ssh_keys.create("mine", KEY)
    assert client.ssh_keys.get_by_id(key.id).public_key == KEY
    script = client.startup_scripts.create("boot", "#!/bin/bash\necho hi\n")
    assert client.startup_scripts.get_by_id(script.id).script == "#!/bin/bash\necho hi\n"
    assert {kind for kind, _ in cloud.meter.live} == {"key", "script"}
    client.ssh_keys.delete([key.id])
    client.startup_scripts.delete_by_id(script.id)
    assert client.ssh_keys.get() == client.startup_scripts.get() == []
    with refused("not_found"):
        client.ssh_keys.get_by_id(key.id)
    with refused("invalid_request", "key should not be empty"):
        client.ssh_keys.create("mine", "")
    assert cloud.meter.live == []


def test_an_instance_from_its_order_to_its_end(cloud, client):
    key = client.ssh_keys.create("mine", KEY)
    script = client.startup_scripts.create("boot", "true")
    ordered = create(client, ssh_key_ids=[key.id], startup_script_id=script.id, wait_for_status=None)
    assert (ordered.status in {"ordered", "running"}, ordered.is_spot) == (True, False)
    now = running(client, ordered.id)
    assert now.ip
    assert (now.contract, now.price_per_hour, now.startup_script_id) == ("PAY_AS_YOU_GO", 0.0279, script.id)
    assert [known.id for known in client.instances.get()] == [now.id]
    assert client.instances.get(status="offline") == []
    delete(client, now)
    assert client.instances.get() == []
    assert client.instances.get_by_id(now.id).status == "discontinued"
    assert [known.id for known in client.instances.get(status="discontinued")] == [now.id]
    with refused("forbidden_action", "Can't discontinue a discontinued instance"):
        delete(client, now)
    client.ssh_keys.delete_by_id(key.id)
    client.startup_scripts.delete([script.id])
    assert cloud.meter.live == []
    assert cloud.meter.cost > 0


def test_no_address_and_no_delete_while_provisioning(cloud, client):
    cloud.faults.on("never_boots")
    starting = create(client)  # waits until it is no longer "ordered"
    assert (starting.status, starting.ip) == ("provisioning", None)
    with refused("forbidden_action", "Can't discontinue a provisioning instance"):
        delete(client, starting)
    cloud.boot(starting.id)
    delete(client, running(client, starting.id))
    assert cloud.meter.live == []


def test_no_capacity(cloud, client):
    for order in ({"location": "FIN-02"}, {"instance_type": "8V100.48V"}, {"is_spot": True, "location": "FIN-02"}):
        with refused("service_unavailable", "No capacity available"):
            create(client, **order)
    cloud.faults.on("no_capacity")
    with refused("service_unavailable"):
        create(client)
    assert cloud.meter.live == []


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"hostname": "-sky"}, "hostname"),
        ({"hostname": "123"}, "hostname"),
        ({"hostname": "a_b"}, "hostname"),
        ({"description": ""}, "description should not be empty"),
        ({"instance_type": "9X.1V"}, "Invalid instance type"),
        ({"location": "MOON-01"}, "Invalid location"),
        ({"image": "debian-3"}, "Invalid image"),
        ({"image": "ubuntu-22.04-cuda-12.4-docker"}, "Operating system is not valid for this instance type"),
        ({"ssh_key_ids": ["nobody"]}, "Invalid ssh key id"),
        ({"startup_script_id": "nothing"}, "Invalid startup script id"),
        ({"existing_volumes": ["nothing"]}, "Invalid volume id"),
        ({"os_volume": OSVolume("os", 49)}, "at least 50"),
        ({"os_volume": OSVolume("os", 50, "delete_permanently")}, "only allowed for spot"),
        ({"is_spot": True, "contract": "PAY_AS_YOU_GO"}, "Invalid contract"),
    ],
)
def test_orders_that_are_refused(cloud, client, order, message):
    with refused("invalid_request", message):
        create(client, **order)
    assert cloud.meter.live == []


def test_instances_that_nobody_has(client):
    with refused("not_found", "Invalid instance id"):
        client.instances.get_by_id("nobody")
    with refused("invalid_request", "Invalid instance id"):
        client.instances.action("nobody", "delete")
    with refused("invalid_request", "Invalid action"):
        client.instances.action(running(client, create(client).id).id, "explode")


@pytest.mark.parametrize(
    ("policy", "left"),
    [(None, ["volume"]), ("keep_detached", ["volume"]), ("move_to_trash", ["trash"]), ("delete_permanently", [])],
)
def test_eviction_of_a_spot_instance(cloud, client, policy, left):
    spot = running(client, create(client, is_spot=True, os_volume=OSVolume("os", 50, policy)).id)
    assert (spot.contract, spot.price_per_hour) == ("SPOT", 0.0139)
    cloud.evict(spot.id)
    assert client.instances.get() == []
    assert client.instances.get_by_id(spot.id).status == "discontinued"
    assert [kind for kind, _ in cloud.meter.live] == left
    assert len(client.volumes.get()) == left.count("volume")
    assert len(client.volumes.get_in_trash()) == left.count("trash")


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({}, {"trash": "os", "volume": "data"}),
        ({"volume_ids": []}, {"volume": "data os"}),
        ({"volume_ids": ["os"]}, {"trash": "os", "volume": "data"}),
        ({"volume_ids": ["os"], "delete_permanently": True}, {"volume": "data"}),
        ({"volume_ids": ["os", "data"], "delete_permanently": True}, {}),
    ],
)
def test_which_volumes_outlive_their_instance(cloud, client, how, left):
    data = client.volumes.create("NVMe", "data", 10, location="FIN-01")
    order = {"os_volume": OSVolume("os", 50), "existing_volumes": [data.id]}
    instance = running(client, create(client, **order).id)
    ids = {"os": instance.os_volume_id, "data": data.id}
    if "volume_ids" in how:
        how = {**how, "volume_ids": [ids[name] for name in how["volume_ids"]]}
    client.instances.action(instance.id, "delete", **how)
    names = {id: name for name, id in ids.items()}
    found: dict[str, str] = {}
    for kind, id in cloud.meter.live:
        found[kind] = " ".join(sorted([*found.get(kind, "").split(), names[id]]))
    assert found == left
    assert all(volume.instance_id is None for volume in client.volumes.get())


def test_volumes(cloud, client):
    volume = client.volumes.create("NVMe", "data", 100)
    assert (volume.status, volume.location, volume.monthly_price) == ("detached", "FIN-03", pytest.approx(20))
    client.volumes.rename(volume.id, "more")
    client.volumes.increase_size(volume.id, 200)
    assert (client.volumes.get_by_id(volume.id).name, client.volumes.get_by_id(volume.id).size) == ("more", 200)
    client.volumes.delete(volume.id)
    assert [trashed.id for trashed in client.volumes.get_in_trash()] == [volume.id]
    assert client.volumes.get() == []
    client.volumes.delete_by_id(volume.id, is_permanent=True)
    assert client.volumes.get_in_trash() == []
    assert cloud.meter.live == []


def test_a_system_on_a_volume_that_was_kept(cloud, client):
    instance = running(client, create(client).id)
    system = instance.os_volume_id
    with refused("invalid_request", "attached"):
        client.volumes.delete(system)
    client.instances.action(instance.id, "delete", volume_ids=[])
    with refused("invalid_request", r"Volume location \(FIN-01\) does not match instance location \(FIN-03\)"):
        create(client, image=system, location="FIN-03")
    again = running(client, create(client, image=system).id)
    assert again.os_volume_id == system
    delete(client, again)
    assert cloud.meter.live == []


def test_off_is_billed_all_the_same(cloud, client):
    instance = running(client, create(client).id)
    client.instances.action(instance.id, "shutdown")
    client.instances.action(instance.id, "shutdown")
    assert client.instances.get_by_id(instance.id).status == "offline"
    assert ("instance", instance.id) in cloud.meter.live
    client.instances.action(instance.id, "start")
    running(client, instance.id)


def test_several_at_once(cloud, client):
    cloud.faults.on("never_boots")
    stuck, fine = create(client, "stuck"), create(client, "fine")
    fine = running(client, fine.id)
    client.instances.action([stuck.id, fine.id], "delete")  # 207, which this client takes for success
    assert [known.hostname for known in client.instances.get()] == ["stuck"]
    client.instances.action(stuck.id, "delete_stuck")
    assert client.instances.get() == []


def test_wrong_credentials(cloud):
    with refused("unauthorized_request", "Invalid client id or client secret"):
        VerdaClient(cloud.client_id, "wrong", cloud.base_url)
    client = connect(cloud)
    cloud.faults.on("bad_credentials")
    with refused("unauthorized_request"):
        client.balance.get()


def test_tokens_end_and_are_refreshed(cloud):
    cloud.token_seconds = 0
    client = connect(cloud)
    with refused("unauthorized_request"):  # the new token is as short
        client.balance.get()
    cloud.token_seconds = 3600
    client.balance.get()
    asked = [request.body for request in cloud.requests if request.path == "/v1/oauth2/token"]
    assert ["refresh_token" in body for body in asked] == [False, True, True]
    cloud.faults.on("token_expired")
    with refused("unauthorized_request"):  # this client does not try again
        client.balance.get()


def test_throttle_and_errors(cloud, client):
    cloud.faults.on("throttle", wait=3)
    with refused("rate_limit_exceeded"):
        client.balance.get()
    cloud.faults.on("server_error")
    with refused("server_error"):
        client.balance.get()
    cloud.faults.on("html")
    with pytest.raises(ValueError, match="Expecting value"):  # this client is not ready for it
        client.balance.get()
    cloud.faults.on("quota")
    with refused("insufficient_funds"):
        create(client)


def test_a_lost_reply_leaves_an_instance(cloud, client):
    cloud.faults.on("lost_reply")
    with pytest.raises(ConnectionError):
        try:
            create(client)
        except OSError as error:  # requests' own kind
            raise ConnectionError from error
    assert [known.hostname for known in client.instances.get()] == ["sky-1"]


def test_an_instance_is_unknown_for_a_while(cloud, client):
    cloud.faults.on("eventual", seconds=0.2)
    with refused("not_found"):
        create(client)
    assert client.instances.get() == []
    eventually(client.instances.get)


def test_what_the_vendors_other_clients_send(cloud, client):
    """The Go client spells some things otherwise; tags are known to it only."""
    asked = {"grant_type": "client_credentials", "client_id": cloud.client_id, "client_secret": cloud.client_secret}
    token = requests.post(f"{cloud.base_url}/oauth2/token", data=asked, timeout=5).json()["access_token"]

    def call(method: str, path: str, status: int, **options) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        got = requests.request(method, cloud.base_url + path, headers=headers, timeout=5, **options)
        assert got.status_code == status, got.text
        return got

    spot = call("GET", "/instance-availability?is_spot=true&location_code=FIN-02", 200).json()
    assert spot == [{"location_code": "FIN-02", "availabilities": []}]
    key = call("POST", "/ssh-keys", 201, json={"name": "k", "key": KEY}).text
    assert call("GET", f"/ssh-keys/{key}", 200).json()[0]["id"] == key
    call("DELETE", f"/ssh-keys/{key}", 200)
    volume = client.volumes.create("NVMe", "data", 10)
    call("DELETE", f"/volumes/{volume.id}?force=true", 202)
    assert client.volumes.get_in_trash() == []
    instance = create(client)
    tags = f"/instances/{instance.id}/tags"
    assert call("POST", tags, 201, json={"key": "Pool", "value": "p1"}).json() == {"key": "pool", "value": "p1"}
    call("POST", tags, 409, json={"key": "pool", "value": "p2"})
    call("POST", tags, 400, json={"key": "no spaces", "value": ""})
    assert [row["id"] for row in call("GET", "/instances?tag=pool=p1", 200).json()] == [instance.id]
    call("DELETE", f"{tags}/pool", 204)
    assert call("GET", "/instances?tag=pool=p1", 200).json() == []
    assert call("GET", "/nothing", 404).json()["code"] == "not_found"
    assert call("POST", "/ssh-keys", 400, data="no JSON").json()["code"] == "invalid_request"
    assert requests.get(f"{cloud.base_url}/instance-types", timeout=5).ok  # needs no login


def test_a_slow_boot(cloud, client):
    cloud.faults.on("slow_boot", seconds=4.0)  # longer than the client takes, however busy this machine is
    starting = create(client)
    assert (starting.status, starting.ip) == ("provisioning", None)
    assert running(client, starting.id, 30.0).ip


# With machines

SCRIPT = """\
set -eu
cat >/etc/ssh/ssh_host_ed25519_key <<'END'
{private}END
echo '{public}' >/etc/ssh/ssh_host_ed25519_key.pub
chmod 600 /etc/ssh/ssh_host_ed25519_key
systemctl restart ssh
hostname >/root/ran
whoami >>/root/ran
echo "$BASH_VERSION" >>/root/ran
"""


@pytest.fixture
def lab_cloud(lab: Lab) -> Iterator[Verda]:
    with Verda(Machines(lab)) as running:
        yield running


class Login:
    """A key for logins, a key for hosts, and OpenSSH's client that accepts only the latter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("login", "host"):
            make_key(folder / name, name)

    def public(self, name: str) -> str:
        return (self.folder / f"{name}.pub").read_text().strip()

    @property
    def script(self) -> str:
        return SCRIPT.format(private=(self.folder / "host").read_text(), public=self.public("host"))

    def __call__(self, address: str, command: str) -> subprocess.CompletedProcess[str]:
        known = self.folder / "known_hosts"
        known.write_text(f"{address} {self.public('host')}\n")
        options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "BatchMode=yes", "ConnectTimeout=3"]
        flags = [part for option in options for part in ("-o", option)]
        argv = ["ssh", "-F", "none", *flags, "-i", str(self.folder / "login"), f"root@{address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)

    def ran(self, address: str) -> str:
        done = self(address, "cat /root/ran")
        return done.stdout if done.returncode == 0 and done.stdout.count("\n") == 3 else ""


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def order(cloud: Verda, login: Login, script: str, **options) -> Instance:
    client = connect(cloud)
    key = client.ssh_keys.create("login", login.public("login"))
    text = client.startup_scripts.create("boot", script)
    return create(client, ssh_key_ids=[key.id], startup_script_id=text.id, **options)


@pytest.mark.lab
def test_a_startup_script_replaces_the_host_key_and_runs_once_as_root(lab_cloud, login):
    client = connect(lab_cloud)
    instance = running(client, order(lab_cloud, login, login.script).id, 60)
    name, user, shell = eventually(lambda: login.ran(instance.ip), 60).splitlines()
    assert (name, user) == ("sky-1", "root")
    assert shell  # bash
    host = lab_cloud.machine(instance.id)
    delete(client, instance)
    assert not host.alive
    assert {kind for kind, _ in lab_cloud.meter.live} == {"key", "script"}


@pytest.mark.lab
def test_sshd_answers_with_the_images_key_before_the_script_has_run(lab_cloud, login):
    """A client that pins its key is turned away until then, and its login is never tried."""
    waits = f"until [ -e /root/go ]; do sleep 0.02; done\n{login.script}"
    instance = running(connect(lab_cloud), order(lab_cloud, login, waits).id, 60)
    early = login(instance.ip, "true")
    assert (early.returncode, "Host key verification failed" in early.stderr) == (255, True)
    host: Host = lab_cloud.machine(instance.id)
    assert login.public("login") in host.run("cat", ".ssh/authorized_keys").stdout
    host.run("touch", "/root/go", check=True)
    eventually(lambda: login.ran(instance.ip), 60)


@pytest.mark.lab
def test_an_impostor_never_shows_the_key_that_was_sent(lab_cloud, login):
    lab_cloud.faults.on("wrong_host_key")
    instance = running(connect(lab_cloud), order(lab_cloud, login, login.script).id, 60)
    host, own = lab_cloud.machine(instance.id), login.public("host").split()[1]
    eventually(host.answers, 60)
    scan = subprocess.run(["ssh-keyscan", "-T", "3", instance.ip], capture_output=True, text=True, check=True).stdout
    # Done with its script, it has taken a third key: neither the image's nor ours.
    assert host.public_key.split()[1] in scan
    assert host.public_key.split()[1] not in {own, host.recorded_key.split()[1]}
    refused_login = login(instance.ip, "true")
    assert (refused_login.returncode, "Host key verification failed" in refused_login.stderr) == (255, True)


@pytest.mark.lab
def test_a_silent_machine_and_an_eviction(lab_cloud, login):
    lab_cloud.faults.on("never_answers")
    instance = running(connect(lab_cloud), order(lab_cloud, login, "true", is_spot=True).id, 60)
    host = lab_cloud.machine(instance.id)
    assert host.alive
    assert not host.answers()
    lab_cloud.evict(instance.id)
    with pytest.raises(LabError):
        host.run("true")
