"""Logging in to a node: OpenSSH, with the pool's key, and with no other host key than the machine's."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import ConfigError
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Endpoint, KeyPair, Machine, Offer, Order, Resources
from tests.lab import Host
from tests.lab.fixtures import FreshHost

from .conftest import Pools, Run

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that says how it was called, and with what its files hold."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "options = dict(item.split('=', 1) for item, name in zip(sys.argv[1:][1:], sys.argv[1:]) if name == '-o')\n"
        "known = open(options['UserKnownHostsFile'].strip('\"')).read()\n"
        "print(json.dumps([sys.argv[1:], options, known]))\n"
        "sys.exit(7)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def called(done: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, str], str]:
    assert done.returncode == 7, done.stderr
    arguments, options, known = json.loads(done.stdout)
    return arguments, options, known


@pytest.mark.slow
@pytest.mark.usefixtures("fake_ssh")
def test_it_becomes_openssh_with_the_pools_key_and_the_one_host_key(
    pools: Pools, ledger: Ledger, command: Command
) -> None:
    tag = pools.open("sky-1", 2, alive=True)
    (_, entry) = ledger.machines()
    arguments, options, known = called(command("ssh", "node-2"))
    assert arguments[-2:] == ["--", "192.0.2.1"]
    assert arguments[:2] == ["-F", "none"]
    assert arguments[arguments.index("-p") + 1] == "22"
    assert arguments[arguments.index("-l") + 1] == "root"
    assert options["IdentityFile"] == f'"{ledger.key_path(tag)}"'
    assert (options["IdentitiesOnly"], options["IdentityAgent"]) == ("yes", "none")
    assert (options["StrictHostKeyChecking"], options["UpdateHostKeys"]) == ("yes", "no")
    assert options["GlobalKnownHostsFile"] == "/dev/null"
    assert known == f"{options['HostKeyAlias']} {entry.host_key}\n"
    path = Path(options["UserKnownHostsFile"].strip('"'))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ledger.close_pool(tag)
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("fake_ssh")
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (["node-1", "--", "nvidia-smi"], ["nvidia-smi"]),
        (["node-1", "--", "echo $HOME | wc"], ["echo $HOME | wc"]),
        (["node-1", "sky-1", "--", "ls", "-l", "a b"], ["ls -l 'a b'"]),
        (["m-sky-1-1", "--"], []),
    ],
)
def test_what_follows_two_hyphens_is_run_there(
    pools: Pools, command: Command, given: list[str], sent: list[str]
) -> None:
    """One word is a command line for the node's shell; several are its arguments as they are."""
    pools.open("sky-1")
    arguments, _, _ = called(command("ssh", *given))
    assert arguments[arguments.index("--") + 1 :] == ["192.0.2.1", *sent]


def error(result: Any) -> str:
    assert result.exit_code == 1
    assert isinstance(result.exception, ConfigError)
    return str(result.exception)


def test_a_name_that_two_pools_have_needs_the_pool(run: Run, pools: Pools) -> None:
    pools.open("sky-1")
    pools.open("sky-2")
    assert "use skyward ssh node-1 sky-1 or skyward ssh node-1 sky-2" in error(run("ssh", "node-1"))


def test_names_that_nobody_has(run: Run, pools: Pools) -> None:
    pools.open("sky-1", 2)
    assert "no machine is named 'node-9'; there are: node-1, node-2" in error(run("ssh", "node-9"))
    assert "no open pool of this computer is named 'narnia'" in error(run("ssh", "node-1", "narnia"))


def test_a_command_without_hyphens(run: Run, pools: Pools) -> None:
    """It is taken for a pool's name, and that is said."""
    pools.open("sky-1")
    with pytest.raises(ConfigError, match="To run a command: skyward ssh node-1 -- hostname"):
        raise run("ssh", "node-1", "hostname").exception


def test_a_machine_that_has_ended(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1")
    ledger.ended("folder", ["m-sky-1-1"])
    assert "there are: none" in error(run("ssh", "node-1"))


def test_a_machine_that_still_boots(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1", 0)
    order = Order("sky-1", 1, Resources(), name="sky-1-1", host_key=make_key("host"))
    ledger.intend("folder", order)
    ledger.made("folder", pools.cloud.create(order))
    assert "has not been reached yet" in error(run("ssh", "m-sky-1-1"))


def test_a_key_that_is_gone(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1")
    ledger.key_path("sky-1").unlink()
    assert "the key of sky-1 is gone" in error(run("ssh", "node-1"))


def test_without_openssh(run: Run, pools: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pools.open("sky-1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "can't run ssh: " in error(run("ssh", "node-1"))


def test_bad_usage(run: Run) -> None:
    assert run("ssh").exit_code == 2
    assert run("ssh", "--", "ls").exit_code == 2


# --- a real sshd ---


def own(ledger: Ledger, host: Host, host_key: str) -> None:
    """A pool whose node is the host, and whose key may log in there."""
    key = make_key("sky-1")
    ledger.open_pool("sky-1", [("narnia", {})], key)
    offer = Offer("small")
    known = KeyPair("", host_key)
    ledger.intend("narnia", Order("sky-1", 1, Resources(), name="sky-1-1", offer=offer, host_key=known))
    endpoint = Endpoint("ssh", host.address, host.port, host.user)
    ledger.reached("narnia", Machine("i-1", endpoint, "i-1", order="sky-1-1", tag="sky-1"), "node-1")
    host.run("sh", "-c", "mkdir -p ~/.ssh && cat >>~/.ssh/authorized_keys", input=f"{key.public}\n", check=True)


@pytest.mark.lab
def test_a_real_node(fresh_host: FreshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Also where the path of the state folder has a blank and a per cent sign."""
    state = tmp_path / "my state 100%h"
    monkeypatch.setenv("SKYWARD_STATE", str(state))
    host = fresh_host(authorized=False)
    own(Ledger(), host, host.public_key)
    done = command("ssh", "node-1", "--", "hostname; echo $0; exit 5")
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout.splitlines()[0] == host.name
    assert command("ssh", "i-1", "sky-1", "--", "printf", "%s|", "a b", "c").stdout == "a b|c|"


@pytest.mark.lab
def test_a_host_with_another_key_is_refused(fresh_host: FreshHost, ledger: Ledger, command: Command) -> None:
    host = fresh_host(authorized=False)
    own(ledger, host, make_key("another").public)
    done = command("ssh", "node-1", "--", "hostname")
    assert (done.returncode, done.stdout) == (255, "")
    assert "Host key verification failed" in done.stderr
