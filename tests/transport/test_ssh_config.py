"""What is made of ssh's configuration, with and without an ssh command to ask."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.transport import ssh_config
from skyward.transport.ssh_config import SSHSettings, expand, expand_path, parse_answer, read_settings

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh to ask")


def settings(**changes: object) -> SSHSettings:
    return SSHSettings(**{"host": "box", "name": "box.example", "port": 2222, "user": "ann", "words": {}, **changes})


# --- ssh's answer ---


def test_an_answer_has_words_of_one_line_of_several_and_of_several_values():
    answer = parse_answer(
        "user ann\nidentityfile ~/a b\nidentityfile %d/c\nsetenv A=1 2\ncanonicalizePermittedcnames none\nproxyjump\n"
        "userknownhostsfile /a /b\n"
    )
    assert answer == {
        "user": ("ann",),
        "identityfile": ("~/a b", "%d/c"),
        "setenv": ("A=1 2",),
        "canonicalizepermittedcnames": ("none",),
        "proxyjump": ("",),
        "userknownhostsfile": ("/a", "/b"),
    }


def test_a_path_with_a_space_is_known_by_its_file(tmp_path):
    spaced = tmp_path / "known hosts"
    spaced.touch()
    answer = parse_answer(f"userknownhostsfile /a {spaced} /b\n")
    assert answer["userknownhostsfile"] == ("/a", str(spaced), "/b")


@needs_ssh
def test_only_what_is_configured_counts(tmp_path):
    config = tmp_path / "config"
    config.write_text(
        "Host box # mine\n  HostName box.example # there\n  User=ann\n  Port 2222\n  ConnectTimeout 1m\n"
        "  RemoteCommand tmux\n  UserKnownHostsFile ${HOME}/a %d/b\n# caf\udce9\n",
        "utf-8",
        "surrogateescape",
    )
    found = read_settings("box", None, None, [str(config)])
    assert (found.name, found.port, found.user) == ("box.example", 2222, "ann")
    assert found.get("connecttimeout") == "60"
    assert len(found.all("userknownhostsfile") or ()) == 2
    assert {"ciphers", "globalknownhostsfile", "identityfile", "proxycommand", "remotecommand"} & set(
        found.words
    ) == set()
    asked = read_settings("box", 22, "root", [str(config)])
    assert (asked.port, asked.user) == (22, "root")


@needs_ssh
def test_the_users_and_the_systems_file_are_read_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh/config").write_text("Host box\n  User ann\n")
    (tmp_path / "system").write_text("Host *\n  User bob\n  Port 2222\n")
    monkeypatch.setattr(ssh_config, "_SYSTEM", tmp_path / "system")
    for path in (os.environ["PATH"], str(tmp_path)):  # the second without an ssh command
        monkeypatch.setenv("PATH", path)
        box, other = (read_settings(host, None, None, None) for host in ("box", "other"))
        assert (box.user, box.port) == ("ann", 2222)
        assert other.user == "bob"
        assert read_settings("box", None, None, []).port == 22, "no file at all was asked for"


@needs_ssh
def test_a_configuration_that_ssh_refuses_is_refused_in_its_words(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host *\n  Port many\n")
    with pytest.raises(ValueError, match="line 2: Bad port"):
        read_settings("box", None, None, [str(config)])


@needs_ssh
def test_a_command_of_the_configuration_that_hangs_does_not_hang_us(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_config, "_LIMIT", 0.3)
    config = tmp_path / "config"
    config.write_text('Match exec "exec sleep 20"\n  Port 2222\n')
    with pytest.raises(ValueError, match="Match exec"):
        read_settings("box", None, None, [str(config)])


@needs_ssh
def test_a_jump_host_for_all_hosts_is_none_for_itself(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host *\n  ProxyJump bastion\n")
    assert read_settings("box", None, None, [str(config)]).get("proxyjump") == "bastion"
    assert read_settings("bastion", None, None, [str(config)]).get("proxyjump") is None


def test_without_an_ssh_command_the_common_words_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config"
    config.write_text(
        "Host box\n  HostName box.example\n  Port 2222\n  IdentityFile ~/a\n  IdentityFile ~/b\n  IdentitiesOnly yes\n"
        "  AddressFamily inet\n  ProxyJump bastion\n  UserKnownHostsFile ~/a ~/b\n"
    )
    found = read_settings("box", None, "ann", [str(config)])
    assert (found.name, found.port, found.user) == ("box.example", 2222, "ann")
    assert found.get("identitiesonly") == "yes"
    assert found.get("addressfamily") == "inet"
    assert found.get("proxyjump") == "bastion"
    assert len(found.all("identityfile") or ()) == len(found.all("userknownhostsfile") or ()) == 2
    config.write_text("Host *\n  ConnectTimeout 1m\n")
    with pytest.raises(ValueError, match="install OpenSSH's client"):
        read_settings("box", None, None, [str(config)])


# --- tokens ---


def test_tokens_stand_for_the_host_the_users_and_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("WORK", "/work place")
    tokens = settings(words={"hostkeyalias": ("alias",), "proxyjump": ("bastion",)}).tokens
    assert expand("%h %n %p %r %k %j %d %i %%h", tokens) == (
        f"box.example box 2222 ann alias bastion /home/ann {os.getuid()} %h"
    )
    assert expand("${WORK}/%L", {"L": "me"}) == "/work place/me"
    assert expand("${WORK}/%L", {"L": "me"}, environment=False) == "${WORK}/me"
    assert expand_path("~/%r", tokens) == "/home/ann/ann"
    assert len(tokens["C"]) == 40


def test_what_a_token_does_not_stand_for_is_named(monkeypatch):
    monkeypatch.delenv("NOTHING", raising=False)
    with pytest.raises(ValueError, match="the token %q is not supported"):
        expand("/a/%q", {"h": "box"})
    with pytest.raises(ValueError, match="NOTHING is not set"):
        expand("/a/${NOTHING}", {})


@given(st.text(st.characters(exclude_characters="%$\n"), max_size=30))
def test_a_text_without_tokens_stands_for_itself(text):
    assert expand(text, {}) == text
    assert expand(text.replace("a", "%%"), {"%": "%"}) == text.replace("a", "%")


def test_none_is_not_a_value():
    found = settings(words={"proxyjump": ("none",), "ciphers": ("a,b",)})
    assert (found.get("proxyjump"), found.get("ciphers"), found.get("macs")) == (None, "a,b", None)
