"""The command as such: how it is found, what it says of itself, and how it fails."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import skyward
from tests.core.folder_cloud import FolderCloud

from .conftest import REPOSITORY, Pools, Run

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_script_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"skyward": "skyward.cli:main"}
    module, _, name = project["scripts"]["skyward"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_help_names_all_commands(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in ("offers", "ls", "down", "doctor", "ssh", "runs"):
        assert f"\n  {name}  " in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2], "no description is cut"
    for name in ("offers", "ls", "down", "doctor", "ssh", "runs"):
        said = run(name, "-h")
        assert said.exit_code == 0
        assert said.stdout.startswith("Usage: ")


def test_the_page_names_all_commands_and_options(run: Run) -> None:
    """docs/cli.md and the command agree."""
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in ("offers", "ls", "down", "doctor", "ssh", "runs"):
        assert f"## skyward {name}" in page
        section = page.partition(f"## skyward {name}")[2].partition("\n## ")[0]
        words = run(name, "-h").stdout.replace(",", " ").replace("/", " ").split()
        for option in {word for word in words if word.startswith("--") and word not in ("--", "--help")}:
            assert f"`{option}" in section, f"{name} {option}"


def test_the_version(command: Command) -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"skyward {skyward.__version__}\n")


@pytest.mark.slow
def test_an_error_of_ours_is_one_line(command: Command) -> None:
    done = command("ssh", "node-1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("skyward: no machine is named 'node-1'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_ledger_that_cant_be_written_is_an_error_of_ours(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("ls", "down"):
        done = command(name, *(["--all"] if name == "down" else []), SKYWARD_STATE=str(tmp_path / "file" / "x"))
        assert done.returncode == 1
        assert done.stderr.startswith("skyward: can't record purchases")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["offers", "ls", "down", "doctor"])
def test_ctrl_c_ends_it_while_a_provider_does_not_answer(name: str, cloud: FolderCloud) -> None:
    fifo = Path(cloud.folder) / "stuck"
    os.mkfifo(fifo)
    all = ["--all"] if name == "down" else []
    with subprocess.Popen(
        [sys.executable, "-m", "skyward.cli", name, *all, "-p", f"folder:folder={cloud.folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        writing = fifo.open("w")  # waits until the provider is asked
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        writing.close()
    assert (process.returncode, told) == (130, "skyward: interrupted\n")


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line() -> None:
    for arguments in (["offers", "--json"], ["offers"], ["doctor"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "skyward.cli", *arguments, "-p", "folder:folder=."],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, "skyward: [Errno 28] No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["80", None])
def test_a_row_is_one_line_with_its_texts_whole(
    columns: str | None, pools: Pools, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be searched for and copied, also where it does not fit the terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    names = ["sky-4242-1-9f3c1a", "sky-31313-12-000000"]
    for name in names:
        pools.open(name)
    lines = command("ls", **({} if columns is None else {"COLUMNS": columns})).stdout.splitlines()
    assert len(lines) == 3
    for name, line in zip(sorted(names), lines[1:], strict=True):
        assert line.split()[0] == name
        assert line.split()[-1] == f"m-{name}-1"
        assert len(line.partition("$")[0]) < 70, "what matters most is on a terminal's first line"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["nothing"], ["ls", "--nothing"]])
def test_bad_usage(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_it_starts_without_what_only_pools_need() -> None:
    """Neither joblib nor asyncssh, nor a cloud's library before a cloud is asked."""
    code = "import sys, skyward.cli; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & {"asyncio", "asyncssh", "cryptography", "joblib", "libcloud", "numpy", "requests"} == set()


def test_skyward_itself_does_not_load_it() -> None:
    code = "import sys, skyward; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & {"typer", "rich", "skyward.cli"} == set()
