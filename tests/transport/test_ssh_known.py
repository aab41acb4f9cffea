"""Which lines of known_hosts files are about a host."""

from __future__ import annotations

import base64
import hmac
import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.transport import ssh_known
from skyward.transport.ssh_known import Entries, KnownHosts, ask_command, lines_of, read_revoked

ONE, TWO, THREE = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))


def line(hosts: str, key: asyncssh.SSHKey = ONE, marker: str = "") -> str:
    return f"{marker}{hosts} {key.export_public_key().decode().strip()}\n"


def hashed(host: str, salt: bytes = b"salt") -> str:
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(hmac.digest(salt, host.encode(), 'sha1')).decode()}"


def look_up(name: str, text: str, port: int = 22) -> KnownHosts:
    return KnownHosts.look_up(name, port, [Entries(lines_of("file", text))], [], [])


@pytest.mark.parametrize(
    ("hosts", "known"),
    [
        ("box.example", True),
        ("other,box.example,10.0.0.5", True),
        ("BOX.Example", True),
        ("*.example", True),
        ("b?x.example,!bux.example", True),
        ("*,!box.example", False),
        ("box", False),
        ("*.other", False),
        ("[box.example]:22", False),
        (hashed("box.example"), True),
        (hashed("other.example"), False),
        ("|1|nonsense", False),
    ],
)
def test_a_line_is_about_the_hosts_that_it_names(hosts, known):
    assert look_up("Box.Example", line(hosts)).keys == ((ONE.convert_to_public(),) if known else ())


@pytest.mark.parametrize("spell", [str, hashed], ids=["plain", "hashed"])
def test_another_port_has_lines_of_its_own_before_those_without_a_port(spell):
    both = line(spell("[box]:2222"), ONE) + line(spell("box"), TWO)
    assert look_up("box", both, 2222).keys == (ONE.convert_to_public(),)
    assert look_up("box", both).keys == (TWO.convert_to_public(),)
    assert look_up("box", line(spell("box"), TWO), 2222).keys == (TWO.convert_to_public(),)
    assert look_up("box", line("[box]:*", ONE), 2222).places == ("file line 1",)


def test_markers_and_lines_that_make_no_sense():
    text = (
        "# comment\n\nnonsense\na b c\n@unknown box ssh-ed25519 AAAA\n"
        + line("box")
        + line("*", TWO, "@cert-authority ")
        + line("*", THREE, "@revoked ")
    )
    known = look_up("box", text)
    assert [len(keys) for keys in known.match()] == [1, 1, 1, 0, 0, 0, 0]
    assert known.places == ("file line 6",)


@given(st.text(max_size=200) | st.text("@|1!*? ,[]:\nbox-authrievkd", max_size=60))
def test_any_text_is_passed_over(text):
    assert look_up("box", text).keys == ()


def test_it_agrees_with_ssh_keygen(tmp_path):
    file = tmp_path / "known"
    names = [f"host{number}.example" for number in range(20)]
    file.write_text("".join(line(name, (ONE, TWO, THREE)[number % 3]) for number, name in enumerate(names)))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    for number, name in enumerate(names):
        known = KnownHosts.look_up(name, 22, [], [str(file)], [])
        assert known.keys == ((ONE, TWO, THREE)[number % 3].convert_to_public(),)
        assert known.places == (f"{file} line {number + 1}",)


def test_a_file_is_indexed_again_when_it_has_changed_and_not_before(tmp_path):
    file = tmp_path / "known"
    assert KnownHosts.look_up("box", 22, [], [str(file)], []).keys == ()
    file.write_text(line("box"))
    first = ssh_known._cache.read(file)
    assert ssh_known._cache.read(file) is first
    file.write_text(line("box", TWO) + line("more"))
    assert KnownHosts.look_up("box", 22, [], [str(file)], []).keys == (TWO.convert_to_public(),)
    for number in range(20):
        (tmp_path / str(number)).touch()
        ssh_known._cache.read(tmp_path / str(number))
    assert len(ssh_known._cache._kept) <= 8


# --- KnownHostsCommand and RevokedHostKeys ---


def test_a_command_says_what_is_known(tmp_path):
    script = tmp_path / "ask"
    script.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho "{line("box").strip()}"\n')
    script.chmod(0o700)
    entries = ask_command(f"{script} %H %h %I %t '%% x'", {"h": "box.example", "%": "%"}, "box", None)
    assert KnownHosts.look_up("box", 22, [entries], [], []).places == ("KnownHostsCommand line 1",)
    assert (tmp_path / "asked").read_text() == "box box.example ORDER NONE % x\n"
    ask_command(f"{script} %I %t %K %f", {}, "box", ONE.convert_to_public())
    kind, text = ONE.export_public_key().decode().split()[:2]
    assert (tmp_path / "asked").read_text() == f"HOSTNAME {kind} {text} {ONE.get_fingerprint()}\n"


@pytest.mark.parametrize("command", ["/no/such/program", "/bin/false", "", "/bin/echo %Q"])
def test_a_command_that_fails_is_named(command):
    with pytest.raises(ValueError, match=r"KnownHostsCommand|the token"):
        ask_command(command, {}, "box", None)


def test_revoked_keys_are_a_list_or_refused(tmp_path):
    file = tmp_path / "revoked"
    file.write_text("# these\n" + ONE.export_public_key().decode())
    assert read_revoked(str(file)) == [ONE.convert_to_public()]
    assert KnownHosts.look_up("box", 22, [], [], read_revoked(str(file))).revoked == (ONE.convert_to_public(),)
    for content in (b"SSHKRL\n\0", b"nonsense here\n"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="RevokedHostKeys"):
            read_revoked(str(file))
    with pytest.raises(ValueError, match="RevokedHostKeys"):
        read_revoked(str(Path(tmp_path / "nothing")))
