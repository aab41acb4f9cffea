"""What there are builds of, from a folder of wheels as the index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from skyward.core.image import Image
from skyward.core.packages.builds import Builds
from skyward.core.packages.lists import PackageLists, Wheel

MAC = "Darwin arm64"
OWN = Wheel("corp", "1.0", "/corp.whl", "0" * 20, pure=False)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv finds nothing but these."""
    for name, tag in (
        ("pure", "py3-none-any"),
        ("fast", "cp311-abi3-manylinux_2_17_x86_64"),
        ("mac", "cp311-abi3-macosx_11_0_arm64"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


def builds(*exact: str, wheels: tuple[Wheel, ...] = (), named: PackageLists | None = None, **more: list[str]) -> Builds:
    lists = PackageLists(exact, (), MAC, wheels, named)
    return Builds(Image(), lists, lambda: more.get("compiled", []))


def test_what_an_index_has_for_a_machine_is_there() -> None:
    for machine in ("x86_64", "aarch64"):
        assert builds("pure==1.0").lack(machine) is None
    assert builds("pure==1.0", "fast==1.0").lack("x86_64") is None


def test_what_it_has_for_others_only_is_named() -> None:
    lack = builds("pure==1.0", "fast==1.0").lack("aarch64")
    assert lack is not None
    assert lack.is_fatal
    assert "fast==1.0 has no build for aarch64" in lack.text
    assert "manylinux" in lack.text
    lack = builds("mac==1.0").lack("x86_64")
    assert lack is not None
    assert "mac==1.0" in lack.text


def test_what_was_only_found_in_the_program_is_not_fatal() -> None:
    lack = builds("fast==1.0", named=PackageLists(("pure==1.0",), (), MAC)).lack("aarch64")
    assert lack is not None
    assert not lack.is_fatal


def test_wheels_that_were_built_here_are_for_machines_like_this_one() -> None:
    lack = builds(wheels=(OWN,)).lack("x86_64")
    assert lack is not None
    assert lack.is_fatal
    assert "corp 1.0" in lack.text
    lack = builds(compiled=["churn.fast"]).lack("x86_64")
    assert lack is not None
    assert not lack.is_fatal
    assert "churn.fast is compiled for Darwin arm64" in lack.text


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert builds("unknown==1.0").lack("aarch64") is None, "nodes may have another index"
    like_this = PackageLists(("fast==1.0",), (), "Linux aarch64", (OWN,))
    assert Builds(Image(), like_this, lambda: ["a"]).lack("aarch64") is None, "what is here came from somewhere"
