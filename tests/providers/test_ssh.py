"""The provider of hosts that exist already."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyward.core.errors import ConfigError, ProvisioningError
from skyward.core.interfaces import Provider
from skyward.core.spec import Machine, Order, Resources
from skyward.providers.ssh import SSH


def order(count: int, tag: str = "pool") -> Order:
    return Order(tag, count, Resources())


def names(machines: list[Machine]) -> list[str]:
    return [machine.name for machine in machines]


def test_it_is_a_provider():
    assert isinstance(SSH(["a"]), Provider)
    assert SSH(["a"]).offers(Resources()) == []


def test_hosts_become_endpoints():
    ssh = SSH(["10.0.0.5", "ann@box:2222", "[::1]:22"], user="root", jump="bastion")
    endpoints = [machine.endpoint for machine in ssh.create(order(3))]
    assert [(e.transport, e.user, e.host, e.port) for e in endpoints] == [
        ("ssh", "root", "10.0.0.5", None),
        ("ssh", "ann", "box", 2222),
        ("ssh", "root", "::1", 22),
    ]
    assert endpoints[0].options["jump"] == "bastion"
    assert all(machine.agent is None for machine in ssh.machines("pool"))


@pytest.mark.parametrize(
    "hosts", [[], "10.0.0.5", None, 5, [5], ["a", "a"], ["a", "A:22"], ["a:0"], ["a:70000"], [""], ["a b"], ["-oX=y"]]
)
def test_bad_hosts_are_config_errors(hosts):
    with pytest.raises(ConfigError, match="hosts"):
        SSH(hosts)


def test_two_users_of_one_machine_are_two_hosts():
    assert len(SSH(["ann@a", "bob@a", "a", "a:23"]).create(order(9))) == 4
    with pytest.raises(ConfigError, match="same host"):
        SSH(["ann@a", "a"], user="ann")


def test_other_bad_values_are_config_errors(tmp_path: Path):
    for option in ("key", "known_hosts", "config"):
        missing = tmp_path / "missing"
        with pytest.raises(ConfigError, match=f"{option}.*{missing}"):
            SSH(["a"], **{option: str(missing)})
        with pytest.raises(ConfigError, match=option):
            SSH(["a"], **{option: tmp_path})  # a folder
    for values in ({"jump": "a b"}, {"jump": ""}, {"user": ""}, {"user": 5}, {"key": 5}, {"jump": "a,"}):
        with pytest.raises(ConfigError):
            SSH(["a"], **values)


def test_files_and_lines_reach_the_transport(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("")
    ssh = SSH(["a"], key=key, known_hosts=["a ssh-ed25519 AAAA"], config=str(key), agent_forwarding=True)
    (machine,) = ssh.create(order(1))
    assert machine.endpoint is not None
    assert machine.endpoint.options == {
        "keys": [str(key)],
        "known_hosts": ["a ssh-ed25519 AAAA"],
        "config": str(key),
        "agent_forwarding": True,
    }


def test_fewer_hosts_than_asked_and_none_left():
    ssh = SSH(["a", "b"])
    assert names(ssh.create(order(3))) == ["a", "b"]
    with pytest.raises(ProvisioningError, match=r"all 2 host"):
        ssh.create(order(1))


def test_released_hosts_come_last():
    ssh = SSH(["a", "b", "c"])
    first, second = ssh.create(order(2, "one"))
    assert names(ssh.machines("one")) == ["a", "b"]
    assert ssh.machines("two") == []
    ssh.destroy([first.id, first.id, "unknown"])
    assert names(ssh.create(order(1, "two"))) == ["c"]
    assert names(ssh.create(order(1, "two"))) == ["a"]
    ssh.destroy([second.id])
    assert names(ssh.create(order(5))) == ["b"]


def test_no_host_is_handed_out_twice_at_a_time():
    ssh = SSH([f"h{n}" for n in range(8)])
    in_use: set[str] = set()
    guard = threading.Lock()

    def use(_: int) -> None:
        try:
            machines = ssh.create(order(2))
        except ProvisioningError:
            return
        ids = {machine.id for machine in machines}
        with guard:
            assert not ids & in_use
            in_use.update(ids)
        with guard:
            in_use.difference_update(ids)
        ssh.destroy(list(ids))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(400)))
    assert len(ssh.create(order(8))) == 8


def test_equal_values_are_equal_and_frozen():
    assert SSH(["a"]) == SSH(("a",))
    with pytest.raises(AttributeError):
        SSH(["a"]).hosts = ["b"]  # type: ignore[misc]


def test_what_is_run_on_the_hosts_stands_in_the_machines():
    ssh = SSH(["a"], python="~/py", prelude="module load python")
    (machine,) = ssh.create(order(1))
    assert (machine.python, machine.prelude) == ("~/py", "module load python")
    assert SSH(["a"], python=Path("/opt/py")).create(order(1))[0].python == "/opt/py"


@pytest.mark.parametrize("option", ["python", "prelude"])
@pytest.mark.parametrize("value", ["", "  ", 5, ["a"]])
def test_a_python_or_prelude_that_is_none_is_a_config_error(option, value):
    with pytest.raises(ConfigError, match=f"SSH {option}="):
        SSH(["a"], **{option: value})
