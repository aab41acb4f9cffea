"""Pools whose machines nobody trusts: nothing that comes back runs here, and all else is as usual."""

from __future__ import annotations

import os
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Manager
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.events import Note
from skyward.core.interfaces import Trait
from skyward.integrations.joblib import JoblibPool
from skyward.providers.local import Local
from tests.lab.fixtures import LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures


@dataclass
class Point:
    x: int


class Trouble(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.two = two


class Evil:
    """Its pickle runs a command where it is read."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"[ $SKYWARD_NODE ] || touch {self.mark}",)  # nodes themselves may read it


def point(x: int) -> Point:
    return Point(x)


def trouble() -> None:
    raise Trouble(1, 2)


def evil(mark: str) -> Any:
    return [1, Evil(mark)]


def evil_error(mark: str) -> None:
    raise ValueError(Evil(mark))


def raw_error() -> None:
    raise ValueError("\x1b[2Jcleared")


def double(array: Any) -> Any:
    array *= 2
    return array


def function() -> Any:
    return lambda: 1


def as_in_a_script(*made: Any) -> None:
    """What is of ``__main__`` travels by value."""
    for each in made:
        for part in (each, *(vars(each).values() if isinstance(each, type) else ())):
            if isinstance(part, (type, types.FunctionType)):
                part.__module__ = "__main__"


as_in_a_script(Point, Trouble, Evil, point, trouble, evil, evil_error, raw_error, double, function)


class Strangers(Local):
    """Nodes on this machine that are said to be somebody's."""

    traits = Local.traits | {Trait.STRANGERS}


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(Strangers(), plugins=[sky.plugins.joblib()], trusted=[Point], console=False) as opened:
        yield opened


def check_what_comes_back(pool: sky.Compute, mark: Path) -> None:
    assert pool.submit(point, 3).result(60) == Point(3)
    with pytest.raises(Trouble, match="1 and 2") as caught:
        pool.submit(trouble).result(60)
    assert caught.value.two == 2
    with pytest.raises(sky.PayloadError, match=r"posix\.system.*do not trust that machine"):
        pool.submit(evil, str(mark)).result(60)
    with pytest.raises(sky.TaskFailed, match="ValueError"):
        pool.submit(evil_error, str(mark)).result(60)
    with pytest.raises(ValueError, match=r"^cleared") as cleared:
        pool.submit(raw_error).result(60)
    assert str(cleared.value) == "cleared"
    with pytest.raises(sky.PayloadError, match=r'code.*results="any"'):
        pool.submit(function).result(60)
    assert not mark.exists()


def test_nothing_that_comes_back_runs_here(pool: sky.Compute, tmp_path: Path) -> None:
    check_what_comes_back(pool, tmp_path / "mark")


def test_joblib_is_as_usual(pool: sky.Compute) -> None:
    assert Parallel(n_jobs=-1)(delayed(point)(i) for i in range(5)) == [Point(i) for i in range(5)]
    with pytest.raises(Trouble):
        Parallel(n_jobs=-1)(delayed(trouble)() for _ in range(3))


def test_a_map_of_a_file_comes_back_as_what_is_in_it(pool: sky.Compute, tmp_path: Path) -> None:
    """By its name a node could have any file opened here, to be written into."""
    numpy = pytest.importorskip("numpy")
    mapped = numpy.memmap(tmp_path / "map", "f8", "w+", shape=(1000,))
    mapped[:] = 2.5
    back = pool.submit(double, mapped).result(60)
    assert (back == 5.0).all()
    assert (mapped == 5.0).all()  # the task wrote there
    assert not isinstance(back, numpy.memmap)


def test_data_is_the_default_where_machines_are_of_strangers() -> None:
    def reads_data(provider: Any, **options: Any) -> bool:
        return sky.Compute(provider, **options)._settings.reads_data

    assert reads_data(sky.VastAI(api_key="k"))
    assert reads_data([sky.Local(), Strangers()])
    assert not reads_data(sky.VastAI(api_key="k"), results="any")
    assert reads_data(sky.Local(), results="data")
    for provider in (sky.Local(), sky.SSH(hosts=["h"]), sky.Verda(client_id="i", client_secret="s")):
        assert not reads_data(provider)
    assert JoblibPool(Strangers(), trusted=[Point])._settings.trusted.objects == (Point,)
    assert not JoblibPool(Strangers(), results="any")._settings.reads_data


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [{"results": "plain"}, {"results": True}, {"trusted": "module"}, {"trusted": ["not a name"]}, {"trusted": [3]}],
)
def test_what_can_not_be_meant_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(sky.ConfigError, match=next(iter(wrong))):
        sky.Compute(**wrong)


@pytest.mark.slow
def test_to_trust_strangers_is_said() -> None:
    seen: list[Any] = []
    for provider, results, count in ((Strangers(), "any", 1), (sky.Local(), "any", 0)):
        opened = sky.Compute(provider, results=results, console=False)
        opened.events.subscribe(seen.append)
        with opened:
            assert opened.submit(function).result(60)() == 1
        notes = [event for event in seen if isinstance(event, Note) and "can run code in this process" in event.text]
        assert len(notes) == count
        seen.clear()


# --- on real hosts ---


def keep(shared: Any, value: Any) -> int:
    shared["value"] = value
    return len(shared)


def keep_evil(shared: Any, mark: str) -> int:
    return keep(shared, Evil(mark))


def tell_evil(address: Any, key: bytes, mark: str) -> list[Any]:
    return tell(address, key, [Evil(mark)])


def tell(address: Any, key: bytes, values: list[Any]) -> list[Any]:
    with Client(address, authkey=key) as connection:
        for value in values:
            connection.send(value)
        return [connection.recv() for _ in values]


def asks_for(address: str) -> Any:
    return Client(address)


as_in_a_script(keep, keep_evil, tell, tell_evil, asks_for)


@pytest.mark.lab
def test_hosts_speak_with_this_process_in_data(lab_hosts: LabHosts, reach: Reach, tmp_path: Path) -> None:
    """Results, Manager proxies and listeners, as scikit-learn's callbacks have them."""
    mark = tmp_path / "mark"
    opened = sky.Compute(**reach(lab_hosts(1)), results="data", trusted=[Point])
    notes: list[Any] = []
    opened.events.subscribe(lambda event: notes.append(event) if isinstance(event, Note) else None)
    with opened as pool, Manager() as manager, Listener(authkey=b"k") as listener:
        check_what_comes_back(pool, mark)
        shared, address = manager.dict(), str(manager._address)  # type: ignore[attr-defined]
        with pytest.raises(ConnectionRefusedError):  # no proxy of it has been sent
            pool.submit(asks_for, address).result(60)
        assert pool.submit(keep, shared, {"a": [1, 2.5]}).result(60) == 1
        assert shared["value"] == {"a": [1, 2.5]}
        with pytest.raises((EOFError, OSError)):
            pool.submit(keep_evil, shared, str(mark)).result(60)
        assert shared["value"] == {"a": [1, 2.5]}

        heard: list[Any] = []

        def serve() -> None:
            while len(heard) < 2:
                with listener.accept() as connection:
                    try:
                        while True:
                            heard.append(connection.recv())
                            connection.send(len(heard))
                    except EOFError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises((EOFError, OSError)):
            pool.submit(tell_evil, listener.address, b"k", str(mark)).result(60)
        assert pool.submit(tell, listener.address, b"k", [(1, "a"), {"b": 2}]).result(60) == [1, 2]
        thread.join(20)
        assert heard == [(1, "a"), {"b": 2}]
        assert sum("blocked a task's message" in note.text for note in notes) == 2
    assert not mark.exists()


@pytest.mark.lab
def test_modules_that_hosts_lack(
    lab_hosts: LabHosts, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error tells to do helps."""
    (tmp_path / "helpers_of_mine.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import helpers_of_mine  # type: ignore[import-not-found]

    image = {"exclude": ["helpers_of_mine", "tests"]}
    with sky.Compute(**reach(lab_hosts(1), image), plugins=[sky.plugins.joblib()]):
        advice = r"on node node-1\. It is one of your own modules, .*exclude=.*local=\['helpers_of_mine'\]"
        with pytest.raises(sky.PayloadError, match=advice):
            Parallel(n_jobs=-1)(delayed(helpers_of_mine.twice)(i) for i in range(3))
    with sky.Compute(**reach(lab_hosts(1), {"local": ["helpers_of_mine"]}), plugins=[sky.plugins.joblib()]):
        assert Parallel(n_jobs=-1)(delayed(helpers_of_mine.twice)(i) for i in range(3)) == [0, 2, 4]
        with pytest.raises(ModuleNotFoundError) as caught:
            Parallel(n_jobs=-1)(delayed(__import__)("hypothesis") for _ in range(3))
        assert "hypothesis==" in caught.value.__notes__[0]
