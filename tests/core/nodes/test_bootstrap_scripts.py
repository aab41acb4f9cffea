"""The scripts are POSIX sh, and a prelude is kept apart from them; what they do is tested in test_bootstrap.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from skyward.core.nodes.bootstrap_scripts import BUILD, DISKS, INSPECT, PRELUDE, START, after
from tests.lab.wait import eventually


@pytest.mark.parametrize("shell", [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)])
@pytest.mark.parametrize("script", [DISKS, INSPECT, BUILD, START], ids=["disks", "inspect", "build", "start"])
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


def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """What a driver does that stops waiting: it terminates the whole group of the command."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    (tmp_path / "code").mkdir()
    (tmp_path / "run").mkdir()
    run, folder = tmp_path / "run/1", tmp_path / "elsewhere"
    values = {"root": tmp_path, "env": tmp_path / "env", "code": "zip", "run": run, "folder": folder}
    script = "\n".join([*(f"{name}={value}" for name, value in values.items()), START])
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.DEVNULL, start_new_session=True) as started:
        eventually((run / "owner").exists)
        os.killpg(started.pid, signal.SIGTERM)
    assert started.returncode == 143
    assert not run.exists()
    assert not folder.exists()
