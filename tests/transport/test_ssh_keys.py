"""Which keys are shown to a host, and in which order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncssh
import pytest

from skyward.transport.ssh_config import SSHSettings
from skyward.transport.ssh_keys import Keys, agent_of, read_keys


def settings(**words: tuple[str, ...]) -> SSHSettings:
    return SSHSettings("box", "box", 22, "ann", words)


def make(path: Path, passphrase: str = "") -> bytes:
    """Make a key file; the public key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return asyncssh.read_public_key(f"{path}.pub").public_data


@pytest.fixture
def pairs() -> list[asyncssh.SSHKeyPair]:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(4)]
    return list(asyncssh.load_keypairs(keys))


def test_keys_that_were_asked_for_come_before_those_of_the_agent(pairs):
    mine, both, other, _ = pairs
    publics = (mine.key_public_data, both.key_public_data)
    keys = Keys(asked=True, pairs=(mine,), publics=publics)
    assert keys.order([other, both]) == [mine, both, other]
    assert Keys(asked=True, pairs=(mine,), publics=publics, only=True).order([other, both]) == [mine, both]


def test_keys_of_the_configuration_come_from_the_agent_first_as_with_ssh(pairs):
    first, second, third, other = pairs
    publics = tuple(pair.key_public_data for pair in (first, second, third))
    keys = Keys(pairs=(first, second, third), publics=publics)
    assert keys.order([other, third, second]) == [second, third, other, first], "no key is shown twice"
    only = Keys(pairs=(first, second, third), publics=publics, only=True)
    assert only.order([other, third, second]) == [second, third, first]
    assert keys.order([]) == [first, second, third]


def test_identity_files_may_be_private_public_encrypted_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plain, locked, public = (make(tmp_path / name, word) for name, word in [("a", ""), ("b", "secret"), ("c", "")])
    (tmp_path / "c").unlink()
    (tmp_path / "d").write_text("nonsense")
    files = ("~/a", "%d/b", "${HOME}/c.pub", "~/d", "~/missing")
    keys = read_keys(settings(identityfile=files, identitiesonly=("yes",)), [])
    assert keys.files == tuple(str(tmp_path / name) for name in ("a", "b", "c.pub", "d"))
    assert [pair.key_public_data for pair in keys.pairs] == [plain]
    assert keys.publics == (plain, locked, public)
    assert "nonsense" not in str(keys.skipped)
    assert len(keys.skipped) == 1
    assert keys.only


def test_the_usual_names_are_tried_where_none_is_configured(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    public = make(tmp_path / ".ssh/id_ed25519")
    keys = read_keys(settings(), [])
    assert keys.files == (str(tmp_path / ".ssh/id_ed25519"),)
    assert [found.key_public_data for found in keys.pairs] == [public]
    assert read_keys(settings(identityfile=("none",)), []).files == ()


def test_a_key_that_was_asked_for_must_be_one(tmp_path):
    with pytest.raises(OSError, match="/no/such/key"):
        read_keys(settings(), ["/no/such/key"])
    (tmp_path / "key").write_text("nonsense")
    with pytest.raises(asyncssh.KeyImportError):
        read_keys(settings(), [str(tmp_path / "key")])


@pytest.mark.parametrize(
    ("configured", "address"),
    [
        ((), "/run/agent"),
        (("SSH_AUTH_SOCK",), "/run/agent"),
        (("none",), ""),
        (("$OTHER",), "/run/other"),
        (("${OTHER}",), "/run/other"),
        (("~/%r",), "/home/ann/ann"),
    ],
)
def test_the_agent_is_where_the_configuration_says(monkeypatch, configured, address):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("OTHER", "/run/other")
    monkeypatch.setenv("HOME", "/home/ann")
    assert agent_of(settings(**({"identityagent": configured} if configured else {}))) == address
