"""What an index lacks is taken from here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skyward.core.packages.lists import PackageLists
from skyward.core.packages.substitutes import substitute, unavailable
from tests.core.packages.fabricated import install

UV = """\
  x No solution found when resolving dependencies:
  `-> Because there is no version of my-own==0.1 and you require my-own==0.1, we can conclude that your requirements are
      unsatisfiable.
"""
PIP = "ERROR: No matching distribution found for My.Own==0.1"

Names = Callable[..., list[str]]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names of the wheels that take the place of what is listed."""
    site = tmp_path / "site-packages"
    install(site, "my-own", "0.1", modules=["my_own.py"])
    install(site, "other", "2.0+cpu", modules=["other.py"])
    bare = install(site, "of-debian", "3.0", modules=["of_debian.py"])
    (bare / "RECORD").unlink()
    fast = install(site, "fast", "1.0", modules=["fast.so"])
    (fast / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\n")
    monkeypatch.syspath_prepend(str(site))

    def found(packages: PackageLists, said: str, compiled: bool = True) -> list[str]:
        more = substitute(packages, said, compiled=compiled, folder=tmp_path / "wheels")
        return [] if more is None else [Path(wheel.path).name for wheel in more.wheels[len(packages.wheels) :]]

    return found


ALL = PackageLists(("My.Own==0.1", 'fast==1.0 ; platform_machine == "x86_64"', "of-debian==3.0"), ("other==2.0",))


@pytest.mark.parametrize("said", [UV, PIP, "Failed to build `my-own==0.1`", "for my_own==0.1."])
def test_what_the_installer_names(names: Names, said: str) -> None:
    assert names(ALL, said) == ["my_own-0.1-py3-none-any.whl"]


@pytest.mark.parametrize("said", ["", "my-own", "my-own==0.11", "no such thing==1", "of-debian==3.0"])
def test_nothing_else(names: Names, said: str) -> None:
    """Nor what can't be made into a wheel."""
    assert names(ALL, said) == []


def test_a_build_of_the_version(names: Names) -> None:
    """An index is asked for the public version; where it has none, the driver's is sent."""
    assert names(ALL, "there is no version of other==2.0") == ["other-2.0+cpu-py3-none-any.whl"]


def test_what_is_compiled(names: Names) -> None:
    """Only for machines like this one."""
    said = "no version of fast==1.0"
    assert names(ALL, said) == ["fast-1.0-cp311-cp311-linux_x86_64.whl"]
    assert names(ALL, said, compiled=False) == []


def test_what_is_sent_already_is_not_sent_again(names: Names, tmp_path: Path) -> None:
    more = substitute(ALL, UV, compiled=True, folder=tmp_path)
    assert more is not None
    assert names(more, UV) == []


def test_what_an_index_cannot_serve() -> None:
    """As the script prints it, before what the installer says."""
    line = 'fast==1.0 ; platform_machine == "x86_64"'
    assert unavailable(f"@installing\nnot available: my-own==0.1\nnot available: {line}\n{UV}") == ("my-own==0.1", line)
    assert unavailable(UV) == ()


def test_hashes_hold(names: Names) -> None:
    """A lock means one file."""
    assert names(PackageLists(resolved=("my-own==0.1 --hash=sha256:0",)), UV) == []
