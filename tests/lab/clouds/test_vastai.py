"""The lab's Vast.ai is faithful: the vendor's own client lives with it, and its containers behave as they do there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward.providers.drivers.vastai import VastAINodeDriver
from tests.lab import Lab, eventually
from tests.lab.clouds.machines import Machines
from tests.lab.clouds.vastai import VastAI
from tests.vendors import client_python

pytestmark = pytest.mark.slow  # what it tests is the lab

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVS8oWvPbqjpzYpQG7cYNjG1eFDTPC1EBNOBcDGaW0f me"
DIRECT = {"direct_port_count": {"gte": 1}, "num_gpus": {"eq": 0}}


@pytest.fixture
def cloud() -> Iterator[VastAI]:
    with VastAI() as running:
        yield running


class Client:
    """The vendor's client in its own environment, pointed at a cloud."""

    def __init__(self, cloud: VastAI, home: Path) -> None:
        self.cloud = cloud
        self.python = client_python("vastai")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "VAST_URL": cloud.url,
            "VAST_API_KEY": cloud.key,
            "VASTAI_NO_UPDATE_CHECK": "1",
            "CI": "1",
        }

    def sdk(self, script: str) -> Any:
        """Run a script that has `v`, the SDK, and leaves its result in `out`."""
        code = "import json, os\nfrom vastai import VastAI\n"
        code += "v = VastAI(api_key=os.environ['VAST_API_KEY'], server_url=os.environ['VAST_URL'])\n"
        return json.loads(self._run(str(self.python), "-c", f"{code}{script}\nprint(json.dumps(out))").stdout)

    def cli(self, *arguments: str) -> Any:
        """What a command with ``--raw`` prints."""
        return json.loads(self._run(str(self.python.with_name("vastai")), *arguments, "--raw").stdout)

    def fails(self, *arguments: str) -> str:
        """What a command that fails prints."""
        done = self._run(str(self.python.with_name("vastai")), *arguments, check=False)
        assert done.returncode != 0 or done.stderr
        return done.stdout + done.stderr

    def _run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, env=self.env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done


@pytest.fixture
def client(cloud: VastAI, tmp_path: Path) -> Client:
    return Client(cloud, tmp_path)


# The vendor's SDK


def test_sdk_searches(client: Client) -> None:
    out = client.sdk("""
def ids(*a, **k):
    return sorted(offer["id"] for offer in v.search_offers(*a, **k))
out = [
    ids(query="gpu_name=RTX_4090 num_gpus>=1 cpu_ram>=200 reliability>0.95 cuda_vers>=12.4 geolocation in [US,CA]"),
    ids(query={"gpu_name": {"in": ["H100 SXM", "H100 NVL"]}}, type="bid"),
    ids(query="num_gpus=0 direct_port_count>=1 geolocation!=US"),
    ids(query="verified=any gpu_name=RTX_5090"),
    ids(query="datacenter=true num_gpus<8 dph<3"),
    [offer["id"] for offer in v.search_offers(query="rentable=true", order="dph_total-", limit=3, storage=20)],
]
""")
    assert out == [
        [7001001],
        [7001006, 7001007, 7001008],
        [7002002, 7002003],
        [7001012],
        [7001006],
        [7001008, 7001007, 7001006],
    ]
    strings = client.cloud.requests[0].body
    assert '"reliability": {"gt": "0.95"}' in strings, (
        "the client sends numbers as text, so the server must compare them"
    )


def test_sdk_lives_an_instances_life(cloud: VastAI, client: Client) -> None:
    out = client.sdk(f"""
import requests
out = {{}}
key = v.create_ssh_key({PUBLIC!r})["key"]["id"]
out["keys"] = [row["public_key"] for row in v.show_ssh_keys()]
new = v.create_instance(id=7001001, image="pytorch/pytorch:2.4.0", disk=20, ssh=True, direct=True,
    env={{"A": "1", "-p 8000:8000": "1"}}, onstart_cmd="echo hi", label="pool-0", cancel_unavail=True)
id = new["new_contract"]
out["statuses"] = []
while "running" not in out["statuses"]:
    row = v.show_instance(id=id)
    if row["actual_status"] not in out["statuses"]:
        out["statuses"].append(row["actual_status"])
        out.setdefault("ports", []).append("ports" in row)
out["row"] = row
bid = v.create_instance(id=7001002, image="ubuntu:22.04", disk=20, bid_price=1.2, runtype="ssh_direct",
    env="-e A=1 -p 9000:9000")["new_contract"]
out["listed"] = [row["id"] == id or row["id"] == bid for row in v.show_instances()]
v.attach_ssh(instance_id=id, ssh_key={PUBLIC!r})
v.label_instance(id=id, label="l2")
v.change_bid(id=bid, price=1.3)
v.stop_instance(id=bid)
out["stopped"] = v.show_instance(id=bid)["intended_status"]
v.start_instance(id=bid)
out["url"] = v.ssh_url(id=id)
v.destroy_instance(id=bid)
v.destroy_instance(id=id)
out["gone"] = v.show_instance(id=id)
out["errors"] = []
for call, options in ((v.destroy_instance, dict(id=id)), (v.create_instance, dict(id=7001001, image="x")),
        (v.create_ssh_key, dict(ssh_key={PUBLIC!r}))):
    try:
        call(**options)
    except requests.HTTPError as error:
        out["errors"].append([error.response.status_code, error.response.json()["error"]])
v.delete_ssh_key(id=key)
out["credit"] = v.show_user()["credit"]
""")
    assert out["keys"] == [PUBLIC]
    assert out["statuses"] == [None, "loading", "running"]
    assert out["ports"] == [False, False, True]
    assert out["row"]["ports"]["22/tcp"][0]["HostPort"] == "40022"
    assert out["row"]["public_ipaddr"].endswith("\n")
    assert out["row"]["extra_env"] == {"A": "1", "-p 8000:8000": "1"}
    assert out["row"]["label"] == "pool-0"
    assert out["listed"] == [True, True]
    assert out["stopped"] == "stopped"
    assert out["url"].startswith("ssh://root@")
    assert out["gone"] is None
    assert out["errors"] == [[404, "no_such_instance"], [404, "invalid_args"], [400, "duplicate"]]
    assert out["credit"] == 25.0
    assert cloud.meter.live == []
    assert len(cloud.meter.ever("instance")) == 2


def test_sdk_follows_all_pages(cloud: VastAI, client: Client) -> None:
    cloud.offers = {n: {**cloud.offers[7001001], "id": n} for n in range(1, 61)}
    driver = VastAINodeDriver(cloud.key, url=cloud.url, pace=0)
    for size in driver.ex_search_offers():
        driver.create_node("many", size, "image")
    assert client.sdk("out = [row['id'] for row in v.show_instances()]") == sorted(cloud.instances)
    assert sum(request.path == "/api/v1/instances/" for request in cloud.requests) == 3


def test_sdk_sees_faults_as_it_should(cloud: VastAI, client: Client) -> None:
    cloud.faults.on("throttle", 2)
    assert client.sdk("out = v.show_user()['id']") == 9, "its client tries again after a 429 in plain text"
    assert cloud.faults.happened == ["throttle", "throttle"]
    cloud.faults.on("throttle", daily=True)
    cloud.faults.on("half_made")
    out = client.sdk("""
import requests
out = []
for call in (lambda: v.search_offers(), lambda: v.create_instance(id=7001001, image="x")):
    try:
        call()
    except requests.HTTPError as error:
        out.append([error.response.status_code, "new_contract" in error.response.json()])
""")
    assert out == [[429, False], [400, True]]
    assert len(cloud.meter.live) == 1


# The vendor's command line


@pytest.mark.slow
def test_cli_lives_an_instances_life(cloud: VastAI, client: Client) -> None:
    found = client.cli("search", "offers", "gpu_name=RTX_4090 cpu_ram>=32 geolocation=SE", "-o", "dph_total")
    assert [offer["id"] for offer in found] == [7001003]
    command = ["create", "instance", "7001003", "--image", "python", "--disk", "20", "--ssh", "--direct"]
    new = client.cli(*command, "--env", "-e A=1 -p 8000:8000", "--onstart-cmd", "echo hi", "--label", "x")
    id = str(new["new_contract"])
    order = next(request for request in cloud.requests if request.path == "/api/v0/asks/7001003/")
    assert json.loads(order.body)["runtype"] == "ssh_direc ssh_proxy", "sic"
    eventually(lambda: cloud.instances[int(id)].stage == 2, what="the container to run")
    eventually(
        lambda: client.cli("show", "instance", id)["actual_status"] == "running", 120, "it to be shown as running"
    )
    assert [str(row["id"]) for row in client.cli("show", "instances")] == [id]
    url = client._run(str(client.python.with_name("vastai")), "ssh-url", id).stdout
    assert url.strip().endswith(":40022")
    client._run(str(client.python.with_name("vastai")), "destroy", "instance", id, "-y")
    assert "not found" in client.fails("destroy", "instance", id, "-y")
    assert cloud.meter.live == []


def test_cli_needs_no_key_for_names_and_a_good_one_for_the_rest(cloud: VastAI, client: Client) -> None:
    client.env["VAST_API_KEY"] = "bad"
    assert "Invalid user key" in client.fails("show", "user", "--raw")
    names = [request for request in cloud.requests if request.path == "/api/v0/gpu_names/unique/"]
    assert names
    assert "Authorization" not in names[0].headers


# Containers

ONSTART = """\
set -e
umask 077
printf '%s\\n' "$HOST_KEY" >/etc/ssh/ssh_host_ed25519_key
ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key >/etc/ssh/ssh_host_ed25519_key.pub
kill -HUP "$(cat /run/sshd.pid)"
env >/root/seen
echo start >>/root/starts
"""

END_MYSELF = """\
while [ ! -e /root/end ]; do sleep 0.1; done
url="$API/api/v0/instances/$CONTAINER_ID/"
if command -v curl >/dev/null; then
    curl -fsS -X DELETE "$url" -H "Authorization: Bearer $CONTAINER_API_KEY" -H 'Content-Type: application/json' -d '{}'
else
    python3 -c 'import os, sys, urllib.request as u
u.urlopen(u.Request(sys.argv[1], b"{}", {"Authorization": "Bearer " + os.environ["CONTAINER_API_KEY"],
    "Content-Type": "application/json"}, method="DELETE"))' "$url"
fi
"""


class Key:
    """A key pair in a folder."""

    def __init__(self, path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        self.path = path
        self.private = path.read_text()
        self.public = " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture
def house(lab: Lab) -> Iterator[VastAI]:
    before = set(lab.hosts)
    with VastAI(Machines(lab)) as running:
        yield running
    eventually(lambda: set(lab.hosts) <= before, what="hosts that end themselves to be gone")


@pytest.fixture
def driver(house: VastAI) -> VastAINodeDriver:
    return VastAINodeDriver(house.key, url=house.url, pace=0.0)


@pytest.fixture
def login(tmp_path: Path) -> Key:
    return Key(tmp_path / "login")


@pytest.fixture
def host_key(tmp_path: Path) -> Key:
    return Key(tmp_path / "host")


def rent(driver: VastAINodeDriver, **options: Any) -> str:
    return driver.create_node("pool-0", driver.ex_search_offers(DIRECT)[0], "python:3.12", **options).id


def add_key(driver: VastAINodeDriver, path: str, key: str) -> None:
    """Of the account or of one instance, of which the driver itself makes no use."""
    driver._call("user", "POST", path, body={"ssh_key": key})


def running(driver: VastAINodeDriver, id: str) -> tuple[str, int]:
    """The direct address, once the API says that it runs."""
    return eventually(lambda: _address(driver, id), 30, f"{id} to run")


def _address(driver: VastAINodeDriver, id: str) -> tuple[str, int] | None:
    extra = driver.ex_get_node(id).extra
    return (extra["ssh_host"], extra["ssh_port"]) if extra["ssh_port"] else None


def ssh(place: tuple[str, int], login: Key, host_key: str, command: str) -> subprocess.CompletedProcess[str]:
    known = login.path.with_name("known_hosts")
    known.write_text(f"[{place[0]}]:{place[1]} {host_key}\n")
    options = ["-F", "/dev/null", "-i", str(login.path), "-p", str(place[1])]
    for option in ("BatchMode=yes", "IdentitiesOnly=yes", "ConnectTimeout=2", "StrictHostKeyChecking=yes"):
        options += ["-o", option]
    options += ["-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlgorithms=ssh-ed25519"]
    argv = ["ssh", *options, f"root@{place[0]}", command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def logged_in(place: tuple[str, int], login: Key, host_key: str, command: str = "true") -> str:
    """The output of a command, as soon as the host shows this key."""
    done = eventually(lambda: _ok(ssh(place, login, host_key, command)), 30, f"a login at {place}")
    return done.stdout


def _ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    return done if done.returncode == 0 else None


def is_open(place: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(place, 1.0):
            return True
    except OSError:
        return False


@pytest.mark.lab
def test_onstart_replaces_the_host_key_and_the_instance_ends_itself(
    house: VastAI, driver: VastAINodeDriver, login: Key, host_key: Key
) -> None:
    add_key(driver, "/api/v0/ssh/", login.public)
    env = {"HOST_KEY": host_key.private.rstrip(), "API": house.url}
    id = rent(driver, ex_onstart=ONSTART + END_MYSELF, ex_env=env)
    place = running(driver, id)
    assert place[1] != 22
    seen = dict(line.partition("=")[::2] for line in logged_in(place, login, host_key.public, "cat seen").splitlines())
    expected = {
        "CONTAINER_ID": id,
        "CONTAINER_API_KEY": house.instances[int(id)].key,
        "PUBLIC_IPADDR": place[0],
        "SSH_PUBLIC_KEY": login.public,
        "VAST_TCP_PORT_22": str(place[1]),
    }
    assert expected.items() <= seen.items()
    assert not is_open((place[0], 22)), "a container's port 22 is not the host's"
    assert logged_in(place, login, host_key.public, "echo ${CONTAINER_ID-none}") == "none\n"
    host = house.host_of(id)
    ssh(place, login, host_key.public, "touch /root/end")
    eventually(lambda: [kind for kind, _ in house.meter.live] == ["key"], 30, "the instance to end itself")
    eventually(lambda: not host.alive, what="the host to be gone")
    ended = [request for request in house.requests if request.method == "DELETE"]
    assert [request.path for request in ended] == [f"/api/v0/instances/{id}/"]


@pytest.mark.lab
def test_an_instance_without_curl_ends_itself_by_python(house: VastAI, driver: VastAINodeDriver) -> None:
    only_python = 'touch /root/end\nPATH=$(dirname "$(command -v python3)")\n'
    id = rent(driver, ex_onstart=only_python + END_MYSELF, ex_env={"API": house.url})
    eventually(lambda: house.meter.live == [], 30, f"{id} to end itself")
    agent = next(request.headers["User-Agent"] for request in house.requests if request.method == "DELETE")
    assert agent.startswith("Python-urllib")


@pytest.mark.lab
def test_the_first_key_is_the_images_own(house: VastAI, driver: VastAINodeDriver, login: Key, host_key: Key) -> None:
    """sshd is up before onstart: a client meets another key first, and must not trust it."""
    onstart = "until [ -e /root/go ]; do sleep 0.05; done\n" + ONSTART
    id = rent(driver, ex_onstart=onstart, ex_env={"HOST_KEY": host_key.private.rstrip()})
    add_key(driver, f"/api/v0/instances/{id}/ssh/", login.public)
    place = running(driver, id)
    assert "IDENTIFICATION HAS CHANGED" in ssh(place, login, host_key.public, "true").stderr
    (house.host_of(id).root / "root/go").touch()
    assert logged_in(place, login, host_key.public, "echo in") == "in\n"
    late = Key(login.path.with_name("late"))
    add_key(driver, f"/api/v0/instances/{id}/ssh/", late.public)
    assert logged_in(place, late, host_key.public, "echo in") == "in\n"
    driver.destroy_node(id)
    assert house.meter.live == []


@pytest.mark.lab
def test_a_stranger_shows_another_key_whatever_onstart_does(
    house: VastAI, driver: VastAINodeDriver, login: Key, host_key: Key
) -> None:
    house.faults.on("wrong_host_key")
    id = rent(driver, ex_onstart=ONSTART, ex_env={"HOST_KEY": host_key.private.rstrip()})
    place = running(driver, id)
    eventually((house.host_of(id).root / "root/starts").exists, what="onstart to end")
    assert "IDENTIFICATION HAS CHANGED" in ssh(place, login, host_key.public, "true").stderr


@pytest.mark.lab
def test_outbid_stops_it_and_a_won_bid_starts_it_elsewhere(
    house: VastAI, driver: VastAINodeDriver, login: Key, host_key: Key
) -> None:
    add_key(driver, "/api/v0/ssh/", login.public)
    id = rent(driver, ex_onstart=ONSTART, ex_env={"HOST_KEY": host_key.private.rstrip()}, ex_bid=1.0)
    place = running(driver, id)
    logged_in(place, login, host_key.public, "touch kept; nohup sleep 1000 >/dev/null 2>&1 &")
    house.outbid(id)
    assert driver.ex_get_node(id).state == "stopped"
    assert ("instance", id) in house.meter.live
    assert not is_open(place)
    house.resume(id)
    again = running(driver, id)
    assert again != place
    command = "cat starts; ls kept; pgrep -f '^sleep 1000' || true"
    starts = eventually(
        lambda: (out := logged_in(again, login, host_key.public, command)).count("start") == 2 and out, 30, "onstart"
    )
    assert starts == "start\nstart\nkept\n"


@pytest.mark.lab
def test_a_silent_machine_and_a_lost_one(house: VastAI, driver: VastAINodeDriver) -> None:
    house.faults.on("never_answers")
    silent = rent(driver)
    assert not is_open(running(driver, silent))
    lost = rent(driver)
    place = running(driver, lost)
    assert is_open(place)
    house.fail(lost, "offline")
    assert not is_open(place)
    assert driver.ex_get_node(lost).extra["actual_status"] == "offline"
    threads = [
        threading.Thread(
            target=VastAINodeDriver(house.key, url=house.url, pace=0).destroy_node, args=[id], name=f"destroy-{id}"
        )
        for id in (silent, lost)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert house.meter.live == []


@pytest.mark.lab
def test_an_instance_may_be_stopped_or_destroyed_while_it_starts(house: VastAI, driver: VastAINodeDriver) -> None:
    driver.destroy_node(rent(driver))
    id = rent(driver, ex_bid=1.0, ex_onstart="touch /root/ran")
    house.outbid(id)
    boot = house.instances[int(id)].boot
    boot._thread.join()
    assert not (house.host_of(id).root / "root/ran").exists()
    house.resume(id)
    assert is_open(running(driver, id))
    eventually((house.host_of(id).root / "root/ran").exists, what="onstart")
