"""What is decided of a login before the first byte, and how a host's refusal is told."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import HostKeyError, LoginRefused
from skyward.core.spec import Endpoint
from skyward.transport.ssh_config import SSHSettings
from skyward.transport.ssh_login import Login, _algorithms, read_login
from tests.transport.test_ssh import STRANGER, endpoint, over, refusal

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh to ask")


def login(tmp_path: Path, lines: str, host: str = "box", **options: Any) -> Login:
    config = tmp_path / "config"
    config.write_text(f"Host *\n{lines}\n")
    return read_login(Endpoint("ssh", host, None, None, {"config": str(config), **options}))


# --- what is decided ---


@needs_ssh
def test_words_about_the_line_and_the_session_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_TEST", "here")
    monkeypatch.setenv("OTHER", "not sent")
    told = login(
        tmp_path,
        "ConnectTimeout 1m\nAddressFamily inet\nBindAddress 127.0.0.1\nTCPKeepAlive no\n"
        "SendEnv LC_TES*\nSetEnv A=1 B=2",
    ).arguments
    assert told["connect_timeout"] == 60
    assert told["family"] == socket.AF_INET
    assert told["local_addr"] == ("127.0.0.1", 0)
    assert told["tcp_keepalive"] is False
    assert told["env"] == {"LC_TEST": "here", "A": "1", "B": "2"}
    assert "family" not in login(tmp_path, "").arguments


@needs_ssh
def test_of_configured_algorithms_those_count_that_exist_here(tmp_path):
    told = login(tmp_path, "Ciphers aes256-ctr,aes128-ctr\nMACs umac-64@openssh.com,hmac-sha2-256").arguments
    assert told["encryption_algs"] == ["aes256-ctr", "aes128-ctr"]
    assert "hmac-sha2-256" in told["mac_algs"]
    assert "kex_algs" not in told, "what is not configured is left to asyncssh"
    strange = SSHSettings("box", "box", 22, "ann", {"macs": ("strange,odd",)})
    with pytest.raises(ValueError, match=r"none of the configured macs \(strange,odd\) is supported; these are: usual"):
        _algorithms(strange, "macs", [b"usual"])
    assert _algorithms(strange, "macs", [b"usual", b"odd"]) == ["odd"]


@needs_ssh
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("BindInterface lo", "use BindAddress"),
        ("ProxyUseFdpass yes", "let ProxyCommand forward"),
        ("PubkeyAuthentication no", "only logins with a key"),
        ("ProxyJump a@b@", "Invalid ProxyJump"),
        ("KnownHostsCommand /no/such/program", "KnownHostsCommand"),
        ("RevokedHostKeys /no/such/file", "RevokedHostKeys"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, line, words):
    with pytest.raises(LoginRefused, match="can't prepare the login") as caught:
        login(tmp_path, line)
    assert words in str(caught.value)


@needs_ssh
def test_an_alias_has_its_own_lines_and_no_port(tmp_path):
    found = login(tmp_path, f"Port 2222\nHostKeyAlias alias\nUserKnownHostsFile {tmp_path}/%k.hosts", known_hosts=None)
    assert found.known.name == "alias"
    (tmp_path / "alias.hosts").write_text(f"alias {STRANGER}\n")
    found = login(tmp_path, f"Port 2222\nHostKeyAlias alias\nUserKnownHostsFile {tmp_path}/%k.hosts /dev/null")
    assert len(found.known.keys) == 1
    assert found.known.sources[:2] == (f"{tmp_path}/alias.hosts", "/dev/null")


@needs_ssh
def test_a_jump_host_that_was_asked_for_takes_the_place_of_a_command(tmp_path):
    assert login(tmp_path, "ProxyCommand nc %h %p").proxy == "nc %h %p"
    jumped = login(tmp_path, "ProxyCommand nc %h %p", jump="a,b:2222")
    assert jumped.proxy == ""
    assert [(hop.host, hop.port) for hop in jumped.jumps] == [("a", None), ("b", 2222)]
    assert login(tmp_path, "ProxyCommand nc %h %p", jump="none").proxy == ""
    hop = login(tmp_path, "ProxyJump ann@[::1]:2222,[b]").jumps
    assert [(at.user, at.host, at.port) for at in hop] == [("ann", "::1", 2222), (None, "b", None)]


# --- hosts ---


@pytest.mark.lab
def test_a_host_that_wants_more_than_a_key_is_told_apart_from_one_that_refuses_it(lab, fresh_host):
    host = fresh_host(sshd=("PasswordAuthentication yes", "AuthenticationMethods publickey,password"))
    text = refusal(endpoint(lab, host), LoginRefused)
    assert "accepted a key of 'root', but also asks for password" in text
    assert "Second factors" in text
    host = fresh_host(sshd=("PasswordAuthentication yes", "PubkeyAuthentication no"))
    text = refusal(endpoint(lab, host), LoginRefused)
    assert "It accepts no keys at all, only password" in text


@pytest.mark.lab
def test_a_key_is_known_by_a_command_that_wants_to_see_it(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    script, config = tmp_path / "known", tmp_path / "config"
    script.write_text(f'#!/bin/sh\ngrep -F "$1" {lab.known_hosts} || true\n')
    script.chmod(0o700)
    lines = f"Host *\n  UserKnownHostsFile /dev/null\n  GlobalKnownHostsFile /dev/null\n  KnownHostsCommand {script} "
    for token in ("%K", "%H"):
        config.write_text(lines + token)
        over(endpoint(lab, host, known_hosts=None, config=str(config)), "true")
    script.write_text("#!/bin/sh\nexit 0\n")
    config.write_text(lines + "%K")
    refusal(endpoint(lab, host, known_hosts=None, config=str(config)), HostKeyError)


@pytest.mark.lab
def test_revoked_keys_of_the_configuration_are_refused(lab, lab_hosts, tmp_path):
    (host,) = lab_hosts(1)
    config = tmp_path / "config"
    (tmp_path / "revoked").write_text(f"{host.public_key}\n")
    config.write_text(f"Host *\n  RevokedHostKeys {tmp_path}/revoked\n")
    assert "revoked" in refusal(endpoint(lab, host, config=str(config)), HostKeyError)
