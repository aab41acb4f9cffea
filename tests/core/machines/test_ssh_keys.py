"""Keys are new each time, and in the formats that OpenSSH reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import asyncssh
import pytest

from skyward.core.machines.ssh_keys import make_key


def test_keys_are_ed25519_and_never_the_same() -> None:
    one, other = make_key("sky-1"), make_key("sky-1")
    assert one.private != other.private
    assert one.public != other.public
    assert one.public.startswith("ssh-ed25519 ")
    assert one.public.endswith(" sky-1")
    assert "\n" not in one.public


def test_both_halves_belong_together() -> None:
    key = make_key("sky-1")
    private = asyncssh.import_private_key(key.private)
    assert private.public_data == asyncssh.import_public_key(key.public).public_data


def test_the_private_half_is_not_shown() -> None:
    key = make_key("sky-1")
    assert "PRIVATE" in key.private
    assert "PRIVATE" not in repr(key)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH's ssh-keygen")
def test_openssh_reads_it(tmp_path: Path) -> None:
    """Without a passphrase, with the comment."""
    key = make_key("sky-1-node")
    path = tmp_path / "key"
    path.write_text(key.private)
    path.chmod(0o600)
    said = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", path], capture_output=True, text=True, check=True)
    assert said.stdout.split()[:2] == key.public.split()[:2]
