"""A project's own code on hosts that have nothing of it: helpers, packages, data, edits; each node gets it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab
from tests.lab.fixtures import LabHosts
from tests.remote import index, wheels

pytestmark = pytest.mark.slow  # nodes start several times

__all__ = ["index", "wheels"]  # fixtures

REPOSITORY = Path(__file__).resolve().parents[1]

PRELUDE = """
import json, os, sys, time
import skyward as sky
from joblib import Parallel, delayed

given = json.loads(sys.argv[1])

def compute(image=None, **options):
    if given is None:
        return sky.Compute(plugins=[sky.plugins.joblib()], image=sky.Image(**image or {}), **options)
    provider = sky.SSH(hosts=given["hosts"], user="root", key=given["key"], known_hosts=given["known_hosts"])
    image = sky.Image(index=given["index"], **image or {})
    return sky.Compute(provider, nodes=len(given["hosts"]), image=image, plugins=[sky.plugins.joblib()], **options)

def write(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)

def report(*values):
    print(json.dumps(values), flush=True)
"""


def project(folder: Path, files: dict[str, str], script: str) -> Path:
    """Write a project, and its script, which begins with `PRELUDE`."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(textwrap.dedent(text))
    main = textwrap.indent(textwrap.dedent(script), "    ")
    (folder / "script.py").write_text(f"{PRELUDE}\nif __name__ == '__main__':\n{main}")
    return folder / "script.py"


def run(script: Path, arguments: dict[str, Any] | None, path: Sequence[str] = ()) -> tuple[list[Any], str]:
    """Run a project's script; return what it reports, and its standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, script.name, json.dumps(arguments)],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def reach(lab: Lab, hosts: Sequence[Host], index: str) -> dict[str, Any]:
    """What the script needs to know of hosts."""
    return {
        "hosts": [host.address for host in hosts],
        "key": str(lab.key),
        "known_hosts": str(lab.known_hosts),
        "index": index,
    }


FILES = {
    "helpers.py": "import shared\ndef price(x):\n    import lazily\n    return shared.FACTOR * x + lazily.OFFSET\n",
    "shared.py": "FACTOR = 10\n",
    "lazily.py": "OFFSET = 1\n",
    "src/churn/__init__.py": "from churn.model import Model\n",
    "src/churn/model.py": """
        import importlib.resources
        class Model:
            def __init__(self, x):
                self.x = x
            def predict(self):
                return self.x + int(importlib.resources.files("churn").joinpath("data/weights.txt").read_text())
        """,
    "src/churn/data/weights.txt": "5",
    "one/corp/a.py": "def name(): return 'a'\n",
    "two/corp/b.py": "def name(): return 'b'\n",
}
SCRIPT = """
import churn, corp.a, helpers
from corp import b
with compute(concurrency=2) as pool:
    report(Parallel(n_jobs=-1)(delayed(helpers.price)(i) for i in range(8)))
    models = Parallel(n_jobs=-1)(delayed(churn.Model)(i) for i in range(4))
    report([type(model) is churn.Model for model in models])
    report(Parallel(n_jobs=-1)(delayed(churn.Model.predict)(model) for model in models))
    report(pool.submit(corp.a.name).result(), pool.submit(b.name).result())
"""
ANSWERS = [[[1, 11, 21, 31, 41, 51, 61, 71]], [[True] * 4], [[5, 6, 7, 8]], ["a", "b"]]
PATH = ["src", "one", "two"]


def test_a_project_on_this_machine(tmp_path: Path) -> None:
    answers, errors = run(project(tmp_path, FILES, SCRIPT), None, PATH)
    assert answers == ANSWERS
    assert "sends" not in errors


@pytest.mark.lab
def test_the_same_project_on_hosts(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    answers, errors = run(project(tmp_path, FILES, SCRIPT), reach(lab, lab_hosts(2), index), PATH)
    assert answers == ANSWERS
    assert "skyward: sends 5 modules, 1 kB" in errors


EDITS = """
import helpers
def seen():
    import os
    return helpers.VALUE, (os.environ["SKYWARD_NODE"], os.getpid())  # hosts may have the same numbers
def call(parts=4):
    return Parallel(n_jobs=-1, batch_size=1)(delayed(seen)() for _ in range(parts))
with compute(concurrency=2) as pool:
    first = call()
    slow = pool.submit(lambda: (helpers.VALUE, time.sleep(3), __import__("later").VALUE))
    time.sleep(0.5)
    write("later.py", "VALUE = 2")
    write("helpers.py", "VALUE = 2\\ndef late(): import later\\n")
    second = call()
    report([value for value, _ in first], [value for value, _ in second])
    report(len({pid for _, pid in first} & {pid for _, pid in second}))
    report(slow.result()[0], slow.result()[2])
    third = call()
    report(len({pid for _, pid in third} - {pid for _, pid in second}) <= 2, [value for value, _ in third])
    import importlib
    importlib.reload(helpers)
    report(pool.submit(seen).result()[0])
    values = []  # before a call fails, some of whose tasks may go on after it
    for value in range(10, 15):
        write("helpers.py", f"VALUE = {value}")
        values.append(pool.submit(seen).result()[0])
    report(values)
    write("helpers.py", "VALUE = ")
    try:
        call()
    except SyntaxError as error:
        report(error.msg)
    except sky.PayloadError as error:
        report(str(error))
    write("helpers.py", "VALUE = 5")
    report([value for value, _ in call()])
"""


def check_edits(answers: list[Any]) -> None:
    values, shared, slow, third, reloaded, one_by_one, broken, mended = answers
    assert values == [[1] * 4, [2] * 4]
    assert shared == [0], "no process has seen two versions"
    assert slow[0] == 1
    assert third == [True, [2] * 4]
    assert reloaded == [2]
    assert one_by_one == [[10, 11, 12, 13, 14]], "a task that is submitted while no other runs sees each edit"
    assert "invalid syntax" in broken[0]
    assert mended == [[5] * 4]


def test_an_edit_while_the_pool_is_open_here(tmp_path: Path) -> None:
    files = {"helpers.py": "VALUE = 1\ndef late(): import later\n", "later.py": "VALUE = 1\n"}
    answers, _ = run(project(tmp_path, files, EDITS), None)
    check_edits(answers)


@pytest.mark.lab
def test_an_edit_while_the_pool_is_open_on_hosts(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    files = {"helpers.py": "VALUE = 1\ndef late(): import later\n", "later.py": "VALUE = 1\n"}
    answers, _ = run(project(tmp_path, files, EDITS), reach(lab, lab_hosts(2), index))
    check_edits(answers)
    assert answers[2] == [1, 1], "what it imports late is what it was when it began"


BAD = """
import churn, helpers, zipped
def refused(call):
    try:
        call()
    except sky.SkywardError as error:
        return type(error).__name__, str(error)
    return "nothing", ""
def begin():
    with compute():
        pass
def scaled(parts=2):
    return Parallel(n_jobs=-1)(delayed(helpers.scaled)(i) for i in range(parts))
os.symlink("/etc", "churn/link")
report(*refused(begin))
os.remove("churn/link")
with open("churn/big.bin", "wb") as file:
    file.truncate(60_000_000)
report(*refused(begin))
with compute({"exclude": ["*.bin"]}) as pool:
    report(scaled())
    os.symlink("/etc", "churn/link")
    while refused(scaled)[0] == "nothing":
        pass
    report(*refused(scaled))
    report(*refused(lambda: pool.submit(helpers.scaled, 1).result()))
    os.remove("churn/link")
    report(scaled())
    report(*refused(lambda: pool.submit(zipped.f).result()))
    report(pool.submit(lambda: __import__("helpers").scaled(3)).result())
with compute({"exclude": ["*.bin", "helpers"]}) as pool:
    report(*refused(lambda: pool.submit(helpers.scaled, 1).result()))
"""


@pytest.mark.lab
def test_what_can_not_be_sent(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    files = {
        "churn/__init__.py": "",
        "helpers.py": "def scaled(x): return 2 * x\ndef late(): __import__('odd name')\n",
        "churn/odd \n name.txt": "x",
        "odd name.py": "VALUE = 1\n",
    }
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "def f(): pass\n")
    script = project(tmp_path, files, BAD)
    answers, _ = run(script, reach(lab, lab_hosts(1), index), ["archive.zip"])
    link, size, before, call, submit, after, zipped, odd, excluded = answers
    for name, text in (link, call, submit):
        assert name == "ConfigError"
        assert "churn/link" in text
        assert "outside of its package" in text
    assert size[0] == "ConfigError"
    assert "churn: 60.0 MB in 2 files" in size[1] or "churn: 60.0 MB in 3 files" in size[1]
    assert before == after == [[0, 2]]
    assert zipped[0] == "PayloadError"
    assert "archive.zip: unpack it" in zipped[1]
    assert odd == [6]
    assert excluded[0] == "PayloadError"
    assert "exclude" in excluded[1]
    assert "local=['helpers']" in excluded[1]


AS_MODULE = """
from churn import tools
def task(x):
    from churn.deep import late
    return late.VALUE + tools.twice(x)
with compute(concurrency=2) as pool:
    report(Parallel(n_jobs=-1)(delayed(task)(i) for i in range(4)))
    try:
        pool.submit(tools.fail).result()
    except tools.OwnError as error:
        report(error.args)
    report(pool.submit(tools.make).result() == tools.make(), pool.submit(tools.version).result())
"""


@pytest.mark.lab
def test_a_program_that_is_a_module_of_a_package(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    """``python -m churn.main``, with classes and exceptions of its own, and metadata beside the package."""
    files = {
        "src/churn/__init__.py": "",
        "src/churn/tools.py": """
            import dataclasses, importlib.metadata
            class OwnError(Exception): pass
            @dataclasses.dataclass
            class Thing:
                x: int
            def twice(x): return 2 * x
            def fail(): raise OwnError("own", 1)
            def make(): return Thing(3)
            def version(): return importlib.metadata.version("churn-of-mine")
            """,
        "src/churn/deep/late.py": "VALUE = 100\n",
        "src/churn_of_mine.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: churn-of-mine\nVersion: 4.5\n",
        "src/churn_of_mine.egg-info/top_level.txt": "churn\n",
    }
    project(tmp_path, files, AS_MODULE).rename(tmp_path / "src/churn/main.py")
    command = [sys.executable, "-m", "churn.main", json.dumps(reach(lab, lab_hosts(1), index))]
    environment = {**os.environ, "PYTHONPATH": f"src{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [[[100, 102, 104, 106]], [["own", 1]], [True, "4.5"]]


EMPTY = """
import hollow
with compute() as pool:
    report(pool.submit(lambda: hollow.__name__).result(30))
    write("hollow/late.py", "")
    import hollow.late
    report(pool.submit(lambda: hollow.late.__name__).result(30))
"""


@pytest.mark.lab
def test_files_without_content(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    """As a package often begins: nothing has to be sent, and tasks must not wait for it."""
    answers, _ = run(project(tmp_path, {"hollow/__init__.py": ""}, EMPTY), reach(lab, lab_hosts(1), index))
    assert answers == [["hollow"], ["hollow.late"]]
