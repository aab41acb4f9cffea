"""What is set up, what is not, and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from tests.core.folder_cloud import FolderCloud
from tests.gpus import A100, plant, script
from tests.lab.clouds.verda import Verda

from .conftest import Pools, Run


def findings(result: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(item["where"], item["what"]): item for item in json.loads(result.stdout)}


@pytest.fixture
def ssh_folder(home: Path) -> Path:
    folder = home / ".ssh"
    folder.mkdir(mode=0o700)
    return folder


def write(path: Path, text: str, mode: int) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_a_computer_where_nothing_is_set_up_is_no_fault(run: Run) -> None:
    """It says where each provider looks for credentials, and ends well."""
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "  ok     Python: 3." in result.stdout
    assert "  -      credentials: verda: no credentials: neither " in result.stdout
    assert "         -> if you use verda, see docs/clouds.md" in result.stdout
    assert "  -      settings: folder needs folder: on the command line folder:folder=..., in a" in result.stdout
    assert "WRONG" not in result.stdout


@pytest.mark.parametrize(
    ("program", "ok", "words"),
    [
        (
            script([A100, A100], used=512),
            True,
            "2 x NVIDIA A100-SXM4-40GB, 40 GiB each; memory in use: 0.5 GiB, 0.5 GiB",
        ),
        (script([]), None, "none; {} lists none"),
        ("#!/bin/sh\necho it is sad\nexit 9\n", False, "nvidia-smi failed with status 9, so the driver can't be used"),
    ],
    ids=["two", "none", "broken"],
)
def test_gpus(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, ok: bool | None, words: str
) -> None:
    smi = plant(tmp_path / "bin", program)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    result = run("doctor", "-p", "local", "--json")
    assert result.exit_code == (ok is False)
    item = findings(result)["this computer", "GPUs"]
    assert item["ok"] is ok
    assert words.format(smi) in item["detail"]


@pytest.mark.parametrize("named", ["local", 'ssh:hosts=["a"]'])
def test_what_rents_nothing_is_no_fault(run: Run, named: str) -> None:
    result = run("doctor", "-p", named, "--json")
    assert result.exit_code == 0, result.output
    item = findings(result)[named.partition(":")[0], "provider"]
    assert (item["ok"], item["detail"]) == (True, "rents no machines")


def test_settings_that_are_wrong_are_a_fault_where_they_are_given(run: Run) -> None:
    result = run("doctor", "-p", "folder:door=1", "--json")
    assert result.exit_code == 1
    assert findings(result)["folder", "provider"]["ok"] is False


def test_keys_that_others_can_read(run: Run, ssh_folder: Path) -> None:
    """With the command that closes them; what is no key may be read."""
    key = make_key("me")
    write(ssh_folder / "id_ed25519", key.private, 0o644)
    write(ssh_folder / "id_ed25519.pub", key.public, 0o644)
    write(ssh_folder / "other", key.private, 0o600)
    write(ssh_folder / "known_hosts", "x", 0o644)
    write(ssh_folder / "config", "Host *\n", 0o664)
    ssh_folder.chmod(0o755)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    found = {Path(what).name: item for (where, what), item in findings(result).items() if where == "keys"}
    assert {name: item["ok"] for name, item in found.items()} == {
        ".ssh": False,
        "id_ed25519": False,
        "other": True,
        "config": False,
        "state": True,
        "ledger.sqlite": True,
    }
    assert found["id_ed25519"]["advice"] == f"chmod 600 {ssh_folder / 'id_ed25519'}"
    assert found["id_ed25519"]["detail"] == "mode 644: ssh rejects a key that others can read"


def test_a_configuration_may_be_read_by_others(run: Run, ssh_folder: Path) -> None:
    write(ssh_folder / "config", "Host *\n", 0o644)
    assert run("doctor").exit_code == 0


def test_the_state_folder(run: Run, ledger: Ledger, pools: Pools) -> None:
    """A folder that others may enter, and a pool's key that they may read."""
    pools.open("sky-1", 0, alive=True)
    ledger.folder.chmod(0o755)
    ledger.key_path("sky-1").chmod(0o640)
    result = run("doctor")
    assert result.exit_code == 1
    assert f"  WRONG  {ledger.folder}: mode 755" in result.stdout
    assert f"         -> chmod 700 {ledger.folder}\n" in result.stdout
    assert f"  WRONG  {ledger.key_path('sky-1')}: mode 640" in result.stdout


def test_a_state_folder_that_cant_be_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "file" / "state"))
    result = run("doctor")
    assert result.exit_code == 1
    assert "  WRONG  ledger: can't record purchases" in result.stdout


def test_pools_whose_driver_died(run: Run, pools: Pools) -> None:
    pools.open("sky-1")
    pools.open("sky-2", alive=True)
    result = run("doctor")
    assert result.exit_code == 1
    assert "  WRONG  sky-1: its driver is dead" in result.stdout
    assert "         -> skyward down sky-1\n" in result.stdout
    assert "  ok     sky-2: its driver is alive" in result.stdout


def test_a_provider_of_somebody_else(run: Run, cloud: FolderCloud) -> None:
    """One that does not examine itself is asked for its machines."""
    where = f"folder:folder={cloud.folder}"
    assert findings(run("doctor", "-p", where, "--json"))["folder", "account"]["ok"] is True
    (Path(cloud.folder) / "locked").touch()
    result = run("doctor", "-p", where, "--json")
    assert result.exit_code == 1
    assert findings(result)["folder", "account"]["detail"] == "folder: the key was refused"


def test_a_plugin_that_is_broken(run: Run, plugin: Path) -> None:
    info = plugin / "wreck-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wreck\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[skyward.providers]\nwreck = wreck:Wreck\n")
    (plugin / "wreck.py").write_text("import no_such_module_at_all\n")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert "no_such_module_at_all" in findings(result)["wreck", "provider"]["detail"]


def test_without_openssh(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one command needs it."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    result = run("doctor", "--json")
    assert (result.exit_code, findings(result)["this computer", "ssh"]["ok"]) == (0, None)


# --- a cloud's API ---


@pytest.fixture
def verda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Verda]:
    with Verda() as running:
        monkeypatch.setenv("VERDA_BASE_URL", running.base_url)
        monkeypatch.setenv("VERDA_CLIENT_ID", running.client_id)
        monkeypatch.setenv("VERDA_CLIENT_SECRET", running.client_secret)
        yield running


@pytest.mark.slow
def test_credentials_that_work(verda: Verda, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """As a process: with what the provider itself looks at."""
    done = command("doctor", "--provider", "verda")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  ok     credentials: accepted; 0 machine(s) of skyward's\n" in done.stdout
    assert "  ok     balance: 100.50" in done.stdout


def test_credentials_that_are_refused(verda: Verda, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDA_CLIENT_SECRET", "geheim")
    result = run("doctor", "-p", "verda", "--json")
    assert result.exit_code == 1
    item = findings(result)["verda", "credentials"]
    assert item["ok"] is False
    assert item["advice"]
    assert "geheim" not in result.output


@pytest.mark.slow
def test_an_api_that_is_not_reached(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for a while, as it may be a moment's failure."""
    monkeypatch.setenv("VERDA_CLIENT_ID", "x")
    monkeypatch.setenv("VERDA_CLIENT_SECRET", "x")
    monkeypatch.setenv("VERDA_BASE_URL", "http://127.0.0.1:9/v1")
    result = run("doctor", "-p", "verda", "--json")
    assert result.exit_code == 1
    assert findings(result)["verda", "reachability"]["ok"] is False


def test_modes_are_those_of_the_user(run: Run, ssh_folder: Path) -> None:
    """A key that belongs to somebody else is useless."""
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    write(ssh_folder / "id", make_key("me").private, 0o600)
    os.chown(ssh_folder / "id", 12345, -1)
    result = run("doctor", "--json")
    assert findings(result)["keys", str(ssh_folder / "id")]["detail"] == "it belongs to user 12345"
