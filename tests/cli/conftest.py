"""A home without anything in it, a provider that any process finds by its name, and ways to run the command."""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from typer import testing

from skyward.cli import app
from skyward.core import registry
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Offer, Order, Resources
from tests.core.folder_cloud import FolderCloud

REPOSITORY = Path(__file__).resolve().parents[2]
VENDORS = ("AWS_", "VERDA_", "VAST", "HCLOUD_", "HETZNER_", "DIGITALOCEAN_", "SKYWARD_")


testing._get_command = functools.cache(testing._get_command)  # it would be built anew for each run of the command


class Run(Protocol):
    def __call__(self, *arguments: str, input: str | None = None) -> Any: ...


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where credentials and the ledger are looked for: an empty folder."""
    for name in list(os.environ):
        if name.startswith(VENDORS):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return folder


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`FolderCloud` is the provider "folder", of a package of its own."""
    packages = tmp_path / "packages"
    info = packages / "skyward_folder-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skyward-folder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[skyward.providers]\nfolder = tests.core.folder_cloud:FolderCloud\n")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", f"{packages}{os.pathsep}{REPOSITORY}")
    registry.load.cache_clear()
    registry._theirs.cache_clear()
    yield packages
    registry.load.cache_clear()
    registry._theirs.cache_clear()


@pytest.fixture
def run() -> Run:
    """Run the command in this process."""
    runner = testing.CliRunner()

    def run(*arguments: str, input: str | None = None) -> Any:
        return runner.invoke(app, list(arguments), input=input)

    return run


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a process."""

    def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "skyward.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )

    return command


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def cloud(tmp_path: Path) -> FolderCloud:
    (tmp_path / "cloud").mkdir()
    return FolderCloud(str(tmp_path / "cloud"))


class Pools:
    """Opens pools that buy from the cloud."""

    def __init__(self, ledger: Ledger, cloud: FolderCloud) -> None:
        self.ledger, self.cloud = ledger, cloud

    def open(self, tag: str, count: int = 1, *, alive: bool = False) -> str:
        """A pool with machines; this process is its driver if it is `alive`."""
        key = make_key(tag)
        self.ledger.open_pool(tag, [(self.cloud.name, self.cloud.settings())], key)
        for n in range(1, count + 1):
            offer = Offer("small", region="drawer", price=0.36)
            order = Order(
                tag, 1, Resources(), name=f"{tag}-{n}", offer=offer, host_key=make_key("host"), user_key=key.public
            )
            self.ledger.intend(self.cloud.name, order)
            (machine,) = self.cloud.create(order)
            self.ledger.reached(self.cloud.name, machine, f"node-{n}")
        if not alive:
            self._sql("UPDATE pools SET pid = 1 WHERE tag = ?", tag)
        return tag

    def age(self, seconds: float) -> None:
        """Let all have been ordered earlier."""
        self._sql("UPDATE machines SET made = made - ?", seconds)
        self._sql("UPDATE orders SET intended = intended - ?", seconds)
        self._sql("UPDATE pools SET opened = opened - ?", seconds)

    def _sql(self, statement: str, *values: object) -> None:
        db = sqlite3.connect(self.ledger.path)
        with db:
            db.execute(statement, values)
        db.close()


@pytest.fixture
def pools(ledger: Ledger, cloud: FolderCloud) -> Pools:
    return Pools(ledger, cloud)
