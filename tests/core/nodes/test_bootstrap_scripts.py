"""The scripts are POSIX sh, and a prelude is kept apart from them; what they do is tested in test_bootstrap.py."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from skyward.core.nodes.bootstrap_scripts import BUILD, DISKS, INSPECT, PRELUDE, QUICK_START, START, after
from tests.lab.wait import eventually

IDENTITY = secrets.token_hex(8)
SOCKETS = Path("/tmp") / f"skyward-{IDENTITY}"


@pytest.mark.parametrize("shell", [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)])
@pytest.mark.parametrize(
    "script", [DISKS, INSPECT, BUILD, START, QUICK_START], ids=["disks", "inspect", "build", "start", "quick"]
)
def test_shells_can_parse_them(shell: str, script: str) -> None:
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    assert subprocess.run(command, input=script, text=True, capture_output=True, check=False).stderr == ""


def run(script: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(
        ["/bin/sh", "-c", script], input=text, env=environment, text=True, capture_output=True, check=False
    )


def test_a_script_has_the_environment_of_its_prelude_and_nothing_of_its_output() -> None:
    script = after("echo noise; read line; export NAME='a b'", 'read line; echo "$NAME, $line, ${SKYWARD_SCRIPT-gone}"')
    assert run(script, "for the script\n").stdout == "a b, for the script, gone\n"


def test_a_prelude_that_fails_has_a_status_of_its_own() -> None:
    done = run(after("false", "echo not reached"))
    assert (done.returncode, done.stdout) == (PRELUDE, "")


def start_of(folder: Path, program: str) -> list[str]:
    """Return the command that starts an agent, where the environment's Python is a shell program."""
    python = folder / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    (folder / "code").mkdir()
    (folder / "run").mkdir()
    values = {"root": folder, "env": folder / "env", "code": "zip", "identity": IDENTITY, "longest": "0"}
    return ["/bin/sh", "-c", "\n".join([*(f"{name}={value}" for name, value in values.items()), START])]


def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """What a driver does that stops waiting: it terminates the whole group of the command.

    Until it has ended: a shell that is about to fork defers its trap until what it forks ends.
    """
    command = start_of(tmp_path, "exec sleep 60")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as started:
        eventually((tmp_path / "run" / IDENTITY / "owner").exists)
        with contextlib.suppress(subprocess.TimeoutExpired):
            os.killpg(started.pid, signal.SIGTERM)
            started.wait(2)
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGTERM)
    assert started.returncode == 143
    assert not (tmp_path / "run" / IDENTITY).exists()
    assert not SOCKETS.exists()


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_start_that_fails_leaves_the_code_to_other_agents_unless_it_is_broken(tmp_path: Path, is_whole: bool) -> None:
    """Agents that run import from it, and what they need they read when they need it."""
    program = f'case $3 in *worker.agent*) exit 1 ;; *zipfile*) exec {sys.executable} "$@" ;; esac'
    command = start_of(tmp_path, program)
    code = tmp_path / "code/zip"
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("module.py", "VALUE = 1\n")
    if not is_whole:
        os.truncate(code, code.stat().st_size // 2)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 1
    assert code.exists() is is_whole
    assert not (tmp_path / "run" / IDENTITY).exists()
