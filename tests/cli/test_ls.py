"""Machines of ours: from the ledger, and from the tags that they carry."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyward.cli.output import age
from skyward.core.errors import ConfigError
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Order, Resources
from skyward.providers.verda import Verda as Provider
from tests.core.folder_cloud import FolderCloud
from tests.lab.clouds.verda import Verda

from .conftest import Pools, Run


def listed(result: Any, code: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == code, result.output
    return list(json.loads(result.stdout))


def test_nothing(run: Run) -> None:
    result = run("ls")
    assert (result.exit_code, result.stdout) == (1, "")
    with pytest.raises(ConfigError, match="no provider has credentials here; run `skyward doctor`"):
        raise result.exception


def test_no_machines(run: Run, cloud: FolderCloud) -> None:
    """It says where."""
    place = f"folder:folder={cloud.folder}"
    result = run("ls", "-p", place)
    assert (result.exit_code, result.stdout) == (0, f"no machines at {place}\n")
    assert listed(run("ls", "--json", "-p", place)) == []


def test_who_could_not_be_asked_may_have_machines(run: Run, cloud: FolderCloud, tmp_path: Path) -> None:
    (Path(cloud.folder) / "down").touch()
    result = run("ls", "-p", f"folder:folder={cloud.folder}")
    assert (result.exit_code, result.stdout) == (1, "")
    result = run("ls", "-p", f"folder:folder={cloud.folder}", "-p", f"folder:{tmp_path}")
    assert (result.exit_code, result.stdout) == (1, f"no machines at folder:folder={tmp_path}\n")


def test_machines_of_a_pool(run: Run, pools: Pools) -> None:
    """With what they have cost so far."""
    pools.open("sky-1", 2, alive=True)
    pools.age(3600)
    first, second = listed(run("ls", "--json"))
    assert (first["pool"], first["node"], first["provider"], first["id"]) == ("sky-1", "node-1", "folder", "m-sky-1-1")
    assert (first["machine"], first["region"], first["spot"]) == ("small", "drawer", False)
    assert (first["state"], first["driver"], first["price"]) == ("running", True, 0.36)
    assert first["age"] == pytest.approx(3600, abs=30)
    assert first["cost"] == pytest.approx(0.36, abs=0.01)
    assert second["node"] == "node-2"


def test_a_table_for_people(run: Run, pools: Pools) -> None:
    pools.open("sky-1", alive=True)
    pools.open("sky-2")
    pools.age(7500)
    lines = run("ls").stdout.splitlines()
    assert lines[0].split() == [
        *("pool", "node", "state", "driver", "age", "cost", "provider", "machine", "region", "id"),
    ]
    row = lines[1].split()
    assert row[:6] == ["sky-1", "node-1", "running", "alive", "2h", "05m"]
    assert row[6].startswith("$0.75")
    assert row[7:] == ["folder", "small", "drawer", "m-sky-1-1"]
    assert lines[2].split()[3] == "dead"


def test_machines_of_another_computer(run: Run, cloud: FolderCloud) -> None:
    """They carry our tag, and nothing else is known of them."""
    cloud.create(Order("sky-9", 1, Resources(), name="sky-9-1"))
    (row,) = listed(run("ls", "--json", "-p", f"folder:folder={cloud.folder}"))
    assert (row["pool"], row["id"], row["state"]) == ("sky-9", "m-sky-9-1", "running")
    assert (row["driver"], row["cost"], row["age"], row["machine"]) == (None, None, None, None)


def test_a_machine_whose_reply_was_lost(run: Run, pools: Pools, ledger: Ledger, cloud: FolderCloud) -> None:
    """Its order is in the ledger: it has a price and an age."""
    tag = pools.open("sky-1", 0)
    order = Order(tag, 1, Resources(), name="sky-1-1", offer=cloud.offers(Resources())[0])
    ledger.intend("folder", order)
    cloud.create(order)
    (row,) = listed(run("ls", "--json"))
    assert (row["id"], row["machine"], row["price"], row["driver"]) == ("m-sky-1-1", "small", 0.36, False)
    assert row["cost"] is not None


def test_a_machine_that_its_provider_no_longer_shows(run: Run, pools: Pools, cloud: FolderCloud) -> None:
    pools.open("sky-1", 2)
    cloud.destroy(["m-sky-1-1"])
    assert [row["state"] for row in listed(run("ls", "--json"))] == ["not shown", "running"]


def test_a_provider_that_cant_be_asked(run: Run, pools: Pools, cloud: FolderCloud) -> None:
    """What the ledger knows is shown all the same, and the exit code says that it is not all."""
    pools.open("sky-1")
    (Path(cloud.folder) / "down").touch()
    result = run("ls", "--json")
    assert [row["state"] for row in listed(result, 1)] == ["?"]
    assert result.stderr == "skyward: folder: the API is down\n"


def test_a_provider_that_is_no_longer_installed(run: Run, ledger: Ledger) -> None:
    ledger.open_pool("sky-8", [("narnia", {"secret_door": 1})], make_key("x"))
    result = run("ls", "--json")
    (row,) = listed(result, 1)
    assert (row["pool"], row["id"], row["state"], row["provider"]) == ("sky-8", None, "no machine", "narnia")
    assert "no provider is named 'narnia'" in result.stderr


def test_a_pool_without_machines_is_shown(run: Run, pools: Pools) -> None:
    pools.open("sky-1", 0)
    (row,) = listed(run("ls", "--json"))
    assert (row["pool"], row["id"], row["state"], row["driver"]) == ("sky-1", None, "no machine", False)
    assert "no machine" in run("ls").stdout


def test_closed_pools_are_not(run: Run, pools: Pools, ledger: Ledger, cloud: FolderCloud) -> None:
    tag = pools.open("sky-1")
    cloud.destroy(["m-sky-1-1"])
    ledger.close_pool(tag)
    assert listed(run("ls", "--json", "-p", f"folder:folder={cloud.folder}")) == []


def test_several_ledger_pools_ask_a_provider_once(
    run: Run, pools: Pools, cloud: FolderCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = FolderCloud.all_machines
    monkeypatch.setattr(FolderCloud, "all_machines", lambda self: asked.append(self.folder) or real(self))
    pools.open("sky-1")
    pools.open("sky-2")
    assert len(listed(run("ls", "--json", "-p", f"folder:folder={cloud.folder}"))) == 2
    assert asked == [cloud.folder]


@pytest.mark.slow
def test_a_cloud_with_credentials_is_asked(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """As a process, without any ledger: the machine's name says whose it is."""
    with Verda() as running:
        known = {"client_id": running.client_id, "client_secret": running.client_secret}
        provider = Provider(**known, url=running.base_url)
        offer = next(offer for offer in provider.offers(Resources()) if not offer.spot and not offer.accelerators)
        keys = {"host_key": make_key("host"), "user_key": make_key("user").public}
        provider.create(Order("sky-7-1-abcdef", 1, Resources(), name="sky-7-1-abcdef-1", offer=offer, **keys))
        environment = {f"VERDA_{name.upper()}": value for name, value in known.items()}
        done = command("ls", "--json", VERDA_BASE_URL=running.base_url, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        (row,) = json.loads(done.stdout)
        assert (row["pool"], row["provider"], row["driver"]) == ("sky-7-1-abcdef", "verda", None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0s"), (59, "59s"), (60, "1m 00s"), (3725, "1h 02m"), (90000, "1d 01h"), (-3, "0s")],
)
def test_ages(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
