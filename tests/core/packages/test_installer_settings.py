"""What of a host's settings of pip and uv holds where environments are made; on hosts: test_bootstrap.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from skyward.core.packages import installer_settings

PIP_CONF = """
[global]
cert = /etc/ca.pem
proxy = http://proxy.test:3128
index-url = https://u:p%%40x@mirror.test/simple
extra-index-url =
    https://a.test
    https://b.test
no-binary = :all:
[install]
target = /libs
require-hashes = true
constraint = /etc/constraints.txt
index-url = https://it's.test/simple
"""
UV_TOML = """
required-version = "<0.1"
python-preference = "only-managed"
native-tls = true
cache-dir = "/big/ä"
[[index]]
name = "corp"
url = "https://corp.test/simple"
default = true
[pip]
target = "/libs"
require-hashes = true
extra-index-url = ["https://a.test", "https://b.test"]
"""


def exported(home: Path, *arguments: str, **variables: str) -> dict[str, str]:
    """The variables of pip and uv that are left when a shell has taken the lines."""
    run = [sys.executable, "-I", installer_settings.__file__, *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_DIRS": "/nowhere", **variables}
    lines = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    shown = subprocess.run(
        ["/bin/sh", "-c", f"{lines}\nenv -0"], env=environment, check=True, capture_output=True, text=True
    )
    pairs = [pair.partition("=") for pair in shown.stdout.split("\0")]
    return {name: value for name, _, value in pairs if name.startswith(("PIP_", "UV_"))}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/pip").mkdir()
    (tmp_path / ".config/pip/pip.conf").write_text(PIP_CONF)
    (tmp_path / ".config/uv/uv.toml").write_text(UV_TOML, "utf-8")
    return tmp_path


PIP = ("", sys.executable, "-m", "pip")  # no file, and the command
ALWAYS = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_indexes_and_the_way_there_are_kept_and_what_suits_other_work_is_not(home) -> None:
    found = exported(home, "pip", "", "", *PIP, PIP_TARGET="/x", PIP_RETRIES="9", PIP_NO_BUILD_ISOLATION="1")
    assert found.pop("PIP_EXTRA_INDEX_URL").split() == ["https://a.test", "https://b.test"]
    assert found == {
        **ALWAYS,
        "PIP_CERT": "/etc/ca.pem",
        "PIP_PROXY": "http://proxy.test:3128",
        "PIP_INDEX_URL": "https://it's.test/simple",
        "PIP_RETRIES": "9",
    }


def test_an_index_of_the_pools_own_leaves_the_hosts_out(home) -> None:
    found = exported(home, "pip", "", "given", *PIP, PIP_FIND_LINKS="/wheels", PIP_NO_INDEX="1")
    assert found == {**ALWAYS, "PIP_CERT": "/etc/ca.pem", "PIP_PROXY": "http://proxy.test:3128"}


def test_what_the_pools_user_sets_stays(home) -> None:
    found = exported(home, "pip", "PIP_INDEX_URL PIP_PRE", "", *PIP, PIP_INDEX_URL="https://own.test", PIP_PRE="1")
    assert (found["PIP_INDEX_URL"], found["PIP_PRE"]) == ("https://own.test", "1")


def test_a_file_that_pip_cant_read_is_not_heeded(home) -> None:
    (home / ".config/pip/pip.conf").write_text("index-url = x\n")
    assert exported(home, "pip", "", "", *PIP) == ALWAYS


def test_uvs_indexes_are_kept_in_a_file_of_ours(home, tmp_path) -> None:
    file = tmp_path / "ours.toml"
    kept = {"UV_INDEX_CORP_PASSWORD": "p", "UV_HTTP_TIMEOUT": "9"}
    found = exported(home, "uv", "", "", str(file), UV_REQUIRE_HASHES="1", **kept)
    assert found == {"UV_CONFIG_FILE": str(file), "UV_INDEX_STRATEGY": "unsafe-best-match", **kept}
    assert tomllib.loads(file.read_text("utf-8")) == {
        "native-tls": True,
        "cache-dir": "/big/ä",
        "extra-index-url": ["https://a.test", "https://b.test"],
        "index": [{"name": "corp", "url": "https://corp.test/simple", "default": True}],
    }
    exported(home, "uv", "", "given", str(file))
    assert tomllib.loads(file.read_text("utf-8")) == {"native-tls": True, "cache-dir": "/big/ä"}
    (home / ".config/uv/uv.toml").write_text("= nonsense")
    exported(home, "uv", "", "", str(file))
    assert file.read_text() == ""
    (home / "other.toml").write_text('index-url = "https://c.test"')
    exported(home, "uv", "", "", str(file), UV_CONFIG_FILE=str(home / "other.toml"))
    assert tomllib.loads(file.read_text()) == {"index-url": "https://c.test"}


def test_uv_is_told_what_pip_is_where_it_was_told_nothing_itself(home, tmp_path) -> None:
    """A host that was set up for pip has its mirror in pip's file only."""
    (home / ".config/uv/uv.toml").unlink()
    (home / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://mirror.test/simple\ntarget = /libs\ntrusted-host = a.test\n    b.test\n"
        "cert = /etc/ca.pem\n[install]\nfind_links = /one /two\n"
    )
    file = str(tmp_path / "ours.toml")
    ours = {"UV_CONFIG_FILE": file, "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_INSECURE_HOST": "a.test b.test"}
    found = exported(home, "uv", "", "", file, PIP_EXTRA_INDEX_URL="https://more.test")
    found.pop("PIP_EXTRA_INDEX_URL")
    indexes = {"UV_INDEX_URL": "https://mirror.test/simple", "UV_FIND_LINKS": "/one,/two"}
    assert found == {**ours, **indexes, "UV_EXTRA_INDEX_URL": "https://more.test"}
    assert exported(home, "uv", "", "given", file) == ours, "the pool has an index of its own"
    assert "UV_FIND_LINKS" not in exported(home, "uv", "", "", file, UV_INDEX_URL="https://own.test")
    assert exported(home, "uv", "", "", file, PIP_CONFIG_FILE="/dev/null").keys() == {
        "PIP_CONFIG_FILE",
        "UV_CONFIG_FILE",
        "UV_INDEX_STRATEGY",
    }
