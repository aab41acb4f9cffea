"""Nodes get the driver's packages: programs as users write them, on real hosts."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.core.packages.fabricated import install
from tests.lab import Lab
from tests.lab.fixtures import LabHosts
from tests.remote import index
from tests.wheels import wheels

__all__ = ["index", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HEAD = """
import json, os, sys
import skyward as sky

address, key, known_hosts, index = sys.argv[1:]
provider = sky.SSH(hosts=[address], user="root", key=key, known_hosts=known_hosts)
"""

Program = Callable[[str], Any]


@pytest.fixture
def program(lab: Lab, lab_hosts: LabHosts, index: str, tmp_path: Path) -> Program:
    """Runs a script that opens a pool on a host, and returns the JSON in its last line."""

    def run(source: str) -> Any:
        script = tmp_path / "script.py"
        script.write_text(HEAD + source)
        arguments = [lab_hosts()[0].address, str(lab.key), str(lab.known_hosts), index]
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def test_what_a_program_imports_is_there(program: Program) -> None:
    """In the driver's versions, with dependencies, and though nothing is named; no more than that."""
    found = program(
        "from sklearn.svm import SVC\n"
        "def task():\n"
        "    import importlib.metadata as metadata\n"
        "    SVC().fit([[0], [1]], [0, 1])\n"
        "    return {one.name: one.version for one in metadata.distributions()}\n"
        "with sky.Compute(provider, image=sky.Image(index=index), console=False) as pool:\n"
        "    print(json.dumps(pool.submit(task).result()))\n"
    )
    expected = versions("scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl", "rich")
    assert {name: found.get(name) for name in expected} == expected
    assert not {"pip", "pytest", "asyncssh"} & found.keys()


def test_what_a_call_needs_beyond_that_is_installed_when_it_arrives(program: Program) -> None:
    """Once for all calls; the node's slots go on, and the versions are the driver's."""
    found = program(
        "import importlib\n"
        "def frame(number):\n"
        "    return importlib.import_module('pan' + 'das').DataFrame({'a': [number]})\n"
        "def task(one):\n"
        "    import importlib.metadata as metadata, os\n"
        "    names = ('pandas', 'numpy', 'six')\n"
        "    return os.getpid(), int(one.a.sum()), [metadata.version(name) for name in names]\n"
        "with sky.Compute(provider, image=sky.Image(index=index), console=False) as pool:\n"
        "    before = pool.submit(os.getpid).result()\n"
        "    notes = []\n"
        "    pool.events.subscribe(notes.append)\n"
        "    found = list(pool.map(task, [frame(number) for number in range(20)]))\n"
        "    texts = [event.text for event in notes if hasattr(event, 'text')]\n"
        "    print(json.dumps([before, found, texts]))\n"
    )
    before, results, texts = found
    assert [number for _, number, _ in results] == list(range(20))
    assert {pid for pid, _, _ in results} == {before}
    expected = [importlib.metadata.version(name) for name in ("pandas", "numpy", "six")]
    assert all(versions == expected for _, _, versions in results)
    assert len([text for text in texts if text.startswith("installing")]) == 1, texts


def test_a_host_without_an_index_gets_wheels_from_here(
    program: Program, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched by the driver's pip, sent once, and kept for other environments."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = (
        "import importlib\n"
        "def task(one):\n"
        "    import importlib.metadata as metadata\n"
        "    return {one.name: one.version for one in metadata.distributions()}\n"
        "pool = sky.Compute(provider, image=sky.Image(pip=['threadpoolctl', EXTRA]), console=False)\n"
        "steps = []\n"
        "pool.events.subscribe(lambda event: steps.append(getattr(event, 'step', '')))\n"
        "with pool:\n"
        "    frame = importlib.import_module('pan' + 'das').DataFrame()\n"
        "    found = pool.submit(task, frame).result()\n"
        "print(json.dumps([found, [step for step in steps if step.endswith('.whl')]]))\n"
    )
    found, sent = program(source.replace("EXTRA", "'joblib'"))
    expected = versions("threadpoolctl", "joblib", "pandas", "numpy")
    assert {name: found.get(name) for name in expected} == expected
    assert {"joblib", "pandas", "msgpack"} <= {step.split()[1].partition("-")[0] for step in sent}
    found, sent = program(source.replace("EXTRA", "'narwhals'"))
    assert found["narwhals"] == importlib.metadata.version("narwhals")
    names = {step.split()[1].partition("-")[0] for step in sent}
    assert "narwhals" in names
    assert not {"joblib", "pandas", "numpy", "msgpack"} & names


def test_nobody_reaches_an_index(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are made of what is installed here, compiled parts too, and with what they require."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, answer = program(
        "from sklearn.svm import SVC\n"
        "def task():\n"
        "    import importlib.metadata as metadata\n"
        "    model = SVC().fit([[0], [1]], [0, 1])\n"
        "    return {one.name: one.version for one in metadata.distributions()}, model.predict([[2]]).tolist()\n"
        "with sky.Compute(provider, image=sky.Image(pip=['narwhals>1']), console=False) as pool:\n"
        "    print(json.dumps(pool.submit(task).result()))\n"
    )
    expected = versions("scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl", "rich", "narwhals", "msgpack")
    assert {name: found.get(name) for name in expected} == expected
    assert not {"pip", "pytest", "asyncssh"} & found.keys()
    assert answer == [1]


@pytest.mark.parametrize("origin", [{"url": "file:///build/it.whl"}, None])
def test_what_no_index_has_is_sent(
    origin: dict[str, object] | None, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private package is installed on the node as it is here, with its metadata; the second time nothing is sent.

    So is one that came from an index or a folder of wheels of which the node knows nothing.
    """
    site = tmp_path / "site-packages"
    version = "0.7" if origin else "0.8"
    others = ["private-first", "private-second"]
    for name in others:
        install(site, name, version, origin=origin)
    install(site, "private-thing", version, modules=["private_thing/__init__.py"], requires=others, origin=origin)
    (site / "private_thing/__init__.py").write_text("def answer():\n    return 42\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    source = (
        "import private_thing\n"
        "def task():\n"
        "    import importlib.metadata\n"
        "    return private_thing.answer(), importlib.metadata.version('private-thing')\n"
        "pool = sky.Compute(provider, image=sky.Image(index=index, pip=['threadpoolctl']), console=False)\n"
        "steps = []\n"
        "pool.events.subscribe(lambda event: steps.append(getattr(event, 'step', '')))\n"
        "with pool:\n"
        "    found = pool.submit(task).result()\n"
        "seen = [step for step in steps if step.startswith(('sending private', 'making'))]\n"
        "print(json.dumps([found, seen]))\n"
    )
    sent = [f"sending {name} {version}" for name in (*others, "private-thing")]
    steps = [*sent, "making an environment with uv"]
    if origin is None:  # only the installer finds out, and of all of them at once
        steps = ["making an environment with uv", *steps]
    assert program(source) == [[42, version], steps]
    assert program(source) == [[42, version], []]


@pytest.mark.parametrize("is_named", [False, True])
def test_what_cannot_be_had_is_named(
    is_named: bool, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps only the driver uses it, so a pool starts without it and with all else, unless it was asked for."""
    site = tmp_path / "site-packages"
    info = install(site, "of-debian", "3.0", modules=["of_debian/__init__.py"])
    (info / "RECORD").unlink()
    (info / "top_level.txt").write_text("of_debian\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    pip = ["of-debian"] if is_named else []
    found = program(
        "import of_debian, joblib\n"
        f"pool = sky.Compute(provider, image=sky.Image(index=index, pip={pip}), console=False)\n"
        "texts = []\n"
        "pool.events.subscribe(lambda event: texts.append(event.text) if getattr(event, 'warning', False) else None)\n"
        "try:\n"
        "    with pool:\n"
        "        print(json.dumps([pool.submit(lambda: joblib.__version__).result(), texts]))\n"
        "except sky.PackagesFailed as error:\n"
        "    print(json.dumps([list(error.unavailable), [str(error)]]))\n"
    )
    assert found[0] == (["of-debian==3.0"] if is_named else importlib.metadata.version("joblib"))
    (text,) = found[1]
    assert ("index can't serve of-debian==3.0, and" if is_named else "gets no of-debian==3.0: ") in text
