"""Locks become lines for pip."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from skyward.core.errors import ConfigError
from skyward.core.lock_files import of_conda, of_pylock, of_uv

UV = """
version = 1
[[package]]
name = "mine"
version = "0.1"
source = { editable = "." }
dependencies = [
    { name = "lib", extra = ["fast"] },
    { name = "winthing", marker = "sys_platform == 'win32'" },
    { name = "armthing", marker = "platform_machine == 'aarch64'" },
    { name = "forked" },
    { name = "beside" },
]
[package.optional-dependencies]
docs = [{ name = "unused" }]

[[package]]
name = "lib"
version = "2.0"
source = { registry = "https://index/simple" }
dependencies = [{ name = "base", version = "1.0", source = { registry = "https://index/simple" } }]
sdist = { url = "https://index/lib.tar.gz", hash = "sha256:aa" }
wheels = [{ url = "https://index/lib.whl", hash = "sha256:bb" }]
[package.optional-dependencies]
fast = [{ name = "speed" }]

[[package]]
name = "base"
version = "1.0"
source = { registry = "https://index/simple" }
wheels = [{ url = "https://index/base.whl", hash = "sha256:cc" }]
[[package]]
name = "base"
version = "0.9"
source = { registry = "https://index/simple" }
[[package]]
name = "speed"
version = "3"
source = { url = "https://host/speed.whl" }
wheels = [{ url = "https://host/speed.whl", hash = "sha256:dd" }]
[[package]]
name = "armthing"
version = "1"
source = { registry = "https://index/simple" }
wheels = [{ url = "https://index/arm.whl", hash = "sha256:ee" }]
[[package]]
name = "winthing"
version = "1"
source = { registry = "https://index/simple" }
[[package]]
name = "unused"
version = "1"
source = { registry = "https://index/simple" }
[[package]]
name = "forked"
version = "1"
source = { git = "https://host/forked?rev=main#0123abc" }
[[package]]
name = "beside"
version = "1"
source = { directory = "../beside" }
dependencies = [{ name = "base", version = "1.0" }]
"""


def test_uv_lock() -> None:
    """What the project needs on a node, with hashes; versions and markers are those of the edges."""
    assert sorted(of_uv(tomllib.loads(UV), "uv.lock")) == [
        'armthing==1 ; platform_machine == "aarch64" --hash=sha256:ee',
        "base==1.0 --hash=sha256:cc",
        "forked @ git+https://host/forked@0123abc",
        "lib==2.0 --hash=sha256:bb --hash=sha256:aa",
        "speed @ https://host/speed.whl --hash=sha256:dd",
    ]


def test_uv_lock_with_forks() -> None:
    """Of several versions, the one for Linux."""
    lock = {
        "package": [
            {"name": "mine", "source": {"virtual": "."}, "dependencies": [{"name": "lib"}]},
            {"name": "lib", "version": "1", "resolution-markers": ["sys_platform == 'darwin'"]},
            {"name": "lib", "version": "2", "resolution-markers": ["sys_platform != 'darwin'"]},
        ]
    }
    assert of_uv(lock, "uv.lock") == ["lib==2"]


def test_pylock() -> None:
    """Markers, sources of all kinds, and only the default groups."""
    lock: dict[str, Any] = {
        "lock-version": "1.0",
        "default-groups": ["main"],
        "packages": [
            {
                "name": "a",
                "version": "1",
                "wheels": [{"hashes": {"sha256": "aa"}}],
                "sdist": {"hashes": {"sha256": "bb"}},
            },
            {"name": "win", "version": "1", "marker": "sys_platform == 'win32'"},
            {"name": "arm", "version": "1", "marker": "platform_machine == 'aarch64'", "wheels": []},
            {"name": "dev", "version": "1", "marker": "'dev' in dependency_groups"},
            {"name": "main", "version": "1", "marker": "'main' in dependency_groups"},
            {"name": "git", "vcs": {"type": "git", "url": "https://host/git", "commit-id": "0123"}},
            {"name": "zip", "archive": {"url": "https://host/zip.zip", "hashes": {"sha256": "cc"}}},
            {"name": "mine", "directory": {"path": "."}},
        ],
    }
    assert of_pylock(lock, "pylock.toml") == [
        "a==1 --hash=sha256:aa --hash=sha256:bb",
        'arm==1 ; platform_machine == "aarch64"',
        "main==1",
        "git @ git+https://host/git@0123",
        "zip @ https://host/zip.zip --hash=sha256:cc",
    ]


def test_environment_yml() -> None:
    """conda's versions in pip's words; Python itself and installers are the node's."""
    text = (
        "name: x\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - conda-forge::numpy=2.4  # comment\n"
        "  - 'joblib>=1.3,<2'\n  - cloudpickle==3.1.2=py_0\n  - pip\n  - pip:\n    - msgpack[x]>=1\n    - -e .\n"
        "  - xxhash\nprefix: /x\n"
    )
    assert of_conda(text, "environment.yml") == [
        "numpy==2.4.*",
        "joblib>=1.3,<2",
        "cloudpickle==3.1.2",
        "msgpack[x]>=1",
        "-e .",
        "xxhash",
    ]


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda: of_uv({"package": []}, "uv.lock"), "names no project"),
        (lambda: of_uv({"package": [{"name": "a", "source": {"virtual": "."}, "dependencies": [{"name": "b"}]},
                                    {"name": "b", "source": {"path": "b.whl"}}]}, "uv.lock"), "b is the file b.whl"),
        (lambda: of_pylock({}, "pylock.toml"), "is not a lock file of version 1"),
        (lambda: of_pylock({"lock-version": "1.0", "packages": [{"name": "a", "wheels": [{"path": "a.whl"}]}]}, "x"),
         "a is a file of this machine"),
        (lambda: of_pylock({"lock-version": "1.0", "packages": [{"name": "a", "marker": "?"}]}, "x"), "can't be read"),
        (lambda: of_conda("dependencies:\n- cudatoolkit=11\n", "environment.yml"), "cudatoolkit is not a Python"),
    ],
)  # fmt: skip
def test_what_can_not_be_used(read: Any, what: str) -> None:
    """It is an error that says what to do."""
    with pytest.raises(ConfigError, match=what):
        read()
