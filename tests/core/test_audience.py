"""Third parties' listeners and front ends are found and used; one that fails does not end the pool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward.core import registry
from skyward.core.audience import Audience
from skyward.core.events import Event, Events, Note, PoolReady
from skyward.core.facts import Facts

LISTENER = """
HEARD = []
class Listener:
    def __init__(self, **told): HEARD.append(told)
    def handle(self, event): HEARD.append(event)
    def close(self): HEARD.append("closed")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Install a package with one entry point, as a stranger would."""

    def install(package: str, entry: str, module: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry)
        (tmp_path / f"{package}.py").write_text(module)

    monkeypatch.syspath_prepend(str(tmp_path))
    registry.load.cache_clear()
    registry._theirs.cache_clear()
    yield install
    registry.load.cache_clear()
    registry._theirs.cache_clear()


def heard(events: Events) -> list[Event]:
    seen: list[Event] = []
    events.subscribe(seen.append)
    return seen


def module(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def test_a_listener_hears_until_the_pool_ends(install: Any) -> None:
    install("theirs_one", "[skyward.listeners]\ntheirs = theirs_one:Listener\n", LISTENER)
    events = Events()
    facts = Facts()
    audience = Audience(events, live=False, facts=facts)
    events.emit(PoolReady(1, 0.1))
    audience.close()
    audience.close()
    events.emit(PoolReady(2, 0.1))
    assert module("theirs_one").HEARD == [{"live": False, "facts": facts}, PoolReady(1, 0.1), "closed"]


def test_a_listener_hears_of_the_kinds_that_it_wants(install: Any) -> None:
    code = f"from skyward.core.events import Note{LISTENER}    kinds = (Note,)\n"
    install("theirs_note", "[skyward.listeners]\ntheirs = theirs_note:Listener\n", code)
    events = Events()
    audience = Audience(events, live=False, facts=Facts())
    events.emit(PoolReady(1, 0.1))
    events.emit(Note("hello"))
    audience.close()
    assert module("theirs_note").HEARD[1:] == [Note("hello"), "closed"]


def test_a_front_end_is_entered_and_left(install: Any) -> None:
    code = "import contextlib\nSAW = []\n@contextlib.contextmanager\ndef front(pool):\n"
    code += "    SAW.append(pool)\n    yield\n    SAW.append('left')\n"
    install("theirs_two", "[skyward.frontends]\ntheirs = theirs_two:front\n", code)

    class Pool:
        is_active = False

    audience, pool = Audience(Events(), live=False, facts=Facts()), Pool()
    with contextlib.ExitStack() as contexts:
        audience.enter(pool, contexts)
        assert module("theirs_two").SAW == [pool]
    assert module("theirs_two").SAW == [pool, "left"]
    audience.close()


@pytest.mark.parametrize(
    "code",
    [
        "import no_such_module",
        "class Listener:\n    def __init__(self, **_): raise ValueError('no_such_module')",
        "x = 1",
    ],
)
def test_one_that_fails_is_reported_and_left_out(install: Any, code: str) -> None:
    install("theirs_wreck", "[skyward.listeners]\ntheirs = theirs_wreck:Listener\n", code)
    events = Events()
    seen = heard(events)
    Audience(events, live=False, facts=Facts()).close()
    (note,) = seen
    assert isinstance(note, Note)
    assert note.warning
    assert "'theirs' is not used" in note.text


def test_one_that_fails_at_the_end_keeps_nobody_from_ending(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    code = LISTENER.replace('HEARD.append("closed")', "raise ValueError('at the end')")
    install("theirs_late", "[skyward.listeners]\na = theirs_late:Listener\n", code)
    install("theirs_fine", "[skyward.listeners]\nb = theirs_fine:Listener\n", LISTENER)
    Audience(Events(), live=False, facts=Facts()).close()
    assert module("theirs_fine").HEARD[-1] == "closed"
    assert "at the end" in caplog.text


def test_the_name_of_one_of_ours_is_taken(install: Any) -> None:
    install("theirs_rival", "[skyward.listeners]\nconsole = theirs_rival:Listener\n", LISTENER)
    events = Events()
    seen = heard(events)
    Audience(events, live=False, facts=Facts()).close()
    assert [type(event) for event in seen] == [Note]
    assert "theirs_rival" in str(seen[0])


def test_without_third_parties_the_packages_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert not registry._is_mentioned(registry.LISTENERS)
    folder = tmp_path / "x-1.egg-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text("[skyward.listeners]\nx = x:X\n")
    assert registry._is_mentioned(registry.LISTENERS)
    assert not registry._is_mentioned(registry.FRONTENDS)
    (tmp_path / "packed.zip").write_bytes(b"")
    monkeypatch.setattr("sys.path", [str(tmp_path / "packed.zip")])
    assert registry._is_mentioned(registry.FRONTENDS)
