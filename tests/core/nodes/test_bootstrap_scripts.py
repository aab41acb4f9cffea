"""The scripts are POSIX sh, and a prelude is kept apart from them; what they do is tested in test_bootstrap.py."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from skyward.core.nodes.bootstrap_scripts import BUILD, DISKS, INSPECT, PRELUDE, START, after


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
