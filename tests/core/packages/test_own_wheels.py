"""Wheels for a node, when no index can be reached from here either."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from skyward.core.errors import PackagesFailed
from skyward.core.packages.fetch import Target
from skyward.core.packages.installed import Installed
from skyward.core.packages.own_wheels import fetch_or_make, make_wheels
from tests.core.packages.fabricated import install

MINOR = ".".join(platform.python_version_tuple()[:2])
NODE = Target("x86_64", 36, MINOR)


def tagged(info: Path, *tags: str) -> None:
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: false\n" + "".join(f"Tag: {t}\n" for t in tags))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    requires = ["fast>=1", "absent", 'other ; platform_machine == "aarch64"', 'more ; extra == "all"']
    install(folder, "my-app", modules=["app/__init__.py"], requires=requires)
    fast = install(folder, "fast", "1.5", modules=["fast.so"])
    short = MINOR.replace(".", "")
    tagged(fast, f"cp{short}-cp{short}-manylinux_2_17_x86_64", f"cp{short}-cp{short}-manylinux2014_x86_64")
    install(folder, "other", modules=["other.py"])
    install(folder, "more", modules=["more.py"])
    install(folder, "cuda", "2.5+cu130", modules=["cuda.py"], requires=["more"])
    (install(folder, "bare", modules=["bare.py"]) / "RECORD").unlink()
    return folder


def made(site: Path, *lines: str, target: Target = NODE) -> list[str]:
    paths = make_wheels(lines, target, site.parent / "wheels", Installed([str(site)]))
    return [f"{name}=={version}" for name, version, *_ in (parse_wheel_filename(path.name) for path in paths)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["exact my-app==1.0", "exact fast==1.5"], ["fast==1.5", "my-app==1.0"]),
        (["plain --extra-index-url https://host/simple", "plain my_app<2"], ["fast==1.5", "my-app==1.0"]),
        (["plain my-app[all]"], ["fast==1.5", "more==1.0", "my-app==1.0"]),
        (['plain absent ; platform_machine == "aarch64"', "constraints other==7", "wheels x==1 abc"], []),
        (["plain cuda==2.5"], ["cuda==2.5+cu130", "more==1.0"]),
    ],
)
def test_what_is_asked_for_comes_with_what_it_requires_there(site: Path, lines: list[str], expected: list[str]) -> None:
    assert made(site, *lines) == expected


@pytest.mark.parametrize(
    ("line", "target", "words"),
    [
        ("exact absent==1.0", NODE, "absent is not installed"),
        ("exact my-app==1.1", NODE, "my-app==1.1 is needed, and 1.0 installed"),
        ("plain app @ https://host/app.whl", NODE, "is not a package of an index"),
        ("hashed my-app==1.0 --hash=sha256:00", NODE, "hashes are given"),
        ("exact bare==1.0", NODE, "bare 1.0 was installed here from an unknown place and has no list of its files"),
        (
            "exact fast==1.5",
            Target("aarch64", 36, MINOR),
            "x86_64.whl does not fit the node, which is aarch64 with glibc",
        ),
        ("exact fast==1.5", Target("x86_64", 5, MINOR), "with glibc 2.5"),
        ("exact fast==1.5", Target("x86_64", 0, MINOR), "without glibc"),
        ("exact my-app==1.0", Target("x86_64", 36, "3.9"), "the node's is 3.9"),
    ],
)
def test_what_can_not_be_made_is_an_error(site: Path, line: str, target: Target, words: str) -> None:
    with pytest.raises(PackagesFailed) as caught:
        made(site, line, target=target)
    assert words in str(caught.value)


@pytest.mark.slow
def test_what_is_fetched_comes_first_and_an_error_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = Target(os.uname().machine, 36, MINOR)
    (wheel,) = fetch_or_make(["exact msgpack"], here, resolve=False)
    assert wheel.name.startswith("msgpack-")
    with pytest.raises(PackagesFailed, match=r"(?s)pip can't fetch.*can't be sent instead: skyward-absent is not inst"):
        fetch_or_make(["exact skyward-absent==1"], here, resolve=False)
