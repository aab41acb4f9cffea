"""Names to classes, with an error that helps when it does not work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core import registry
from skyward.core.errors import ConfigError, PluginNotFound
from skyward.core.interfaces import Provider


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Install packages as a stranger would: metadata with entry points on sys.path."""

    def install(package: str, *entries: str, module: str = "") -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[skyward.providers]\n" + "\n".join(entries) + "\n")
        if module:
            (tmp_path / f"{package}.py").write_text(module)

    monkeypatch.syspath_prepend(str(tmp_path))
    registry.load.cache_clear()
    registry._theirs.cache_clear()
    yield install
    registry.load.cache_clear()
    registry._theirs.cache_clear()


def test_ours_are_found() -> None:
    """Local and SSH, tcp, ssh and memory."""
    assert {"local", "ssh"} <= set(registry.names(registry.PROVIDERS))
    assert isinstance(registry.load(registry.PROVIDERS, "local")(), Provider)
    for name in ("memory", "ssh", "tcp"):
        assert registry.load(registry.TRANSPORTS, name).name == name


def test_a_third_party_is_found(install: object) -> None:
    """A package with an entry point is loaded when it is asked for."""
    install("moon", "moon = moon:Moon", module="class Moon:\n    name = 'moon'\n")  # type: ignore[operator]
    assert "moon" in registry.names(registry.PROVIDERS)
    assert registry.load(registry.PROVIDERS, "moon").name == "moon"


def test_a_broken_package_is_named(install: object) -> None:
    """The error says which package fails and how."""
    install("wreck", "wreck = wreck:Wreck", module="import no_such_module_at_all\n")  # type: ignore[operator]
    with pytest.raises(PluginNotFound, match=r"wreck.*no_such_module_at_all"):
        registry.load(registry.PROVIDERS, "wreck")


def test_two_claims_are_named(install: object) -> None:
    """Neither of two packages wins silently."""
    install("one", "same = one:X")  # type: ignore[operator]
    install("two", "same = two:X")  # type: ignore[operator]
    with pytest.raises(PluginNotFound, match="one and two both provide"):
        registry.load(registry.PROVIDERS, "same")


def test_an_unknown_name_lists_the_known() -> None:
    """A package is not named: anybody may have taken that name."""
    with pytest.raises(PluginNotFound, match=r"'narnia'; is its package installed\? Available: .*local.*ssh") as caught:
        registry.load(registry.PROVIDERS, "narnia")
    assert "skyward-narnia" not in str(caught.value)
    assert isinstance(caught.value, (ConfigError, LookupError))


@pytest.mark.parametrize(("given", "meant"), [("vasti", "vastai"), ("AWS", "aws")])
def test_a_typo_gets_a_suggestion(given: str, meant: str) -> None:
    with pytest.raises(PluginNotFound, match=rf"no provider is named '{given}'; did you mean '{meant}'\?"):
        registry.load(registry.PROVIDERS, given)


SUN = """
from dataclasses import dataclass, field

@dataclass
class Sun:
    name = "sun"
    side: str = field(metadata={"example": "dark"})
    key: str = field(default="", metadata={"secret": True})
    size: int = 1

    def __post_init__(self):
        self.size > 0
"""


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("sun", {"side": "dark", "nosuch": 1}, "sun has no setting 'nosuch'; it has side, size$"),
        ("sun", {}, r"sun needs side: on the command line sun:dark, in a program Sun\(\.\.\.\)$"),
        ("sun", {"side": "dark", "size": "big"}, "sun: TypeError: '>' not supported"),
    ],
)
def test_settings_that_do_not_fit(install: object, name: str, settings: dict[str, object], said: str) -> None:
    install("sun", "sun = sun:Sun", module=SUN)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=said):
        registry.provider(name, settings)


def test_a_name_may_bring_the_first_argument(install: object) -> None:
    install("sun", "sun = sun:Sun", module=SUN)  # type: ignore[operator]
    assert registry.provider("sun:dark", {"size": 2}) == registry.load(registry.PROVIDERS, "sun")("dark", size=2)


def test_a_name_of_ours_that_another_package_takes_too_is_named(install: object) -> None:
    install("thief", "ssh = thief:X")  # type: ignore[operator]
    with pytest.raises(PluginNotFound, match=r"thief provides a provider named 'ssh', which is the name of a built-in"):
        registry.provider("ssh")
