"""A project as people have them, written and installed anew: what skyward has to bring to other machines.

A package in ``src`` with data files and a part in C, installed in place; a private wheel; helpers beside the program;
data by a relative path; a ``.env``; the program itself, and a notebook that does the same. It has an environment of its
own, which sees the packages of the running one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyward.core.packages.uv_program import uv_here

__all__ = ["CELLS", "Project", "make"]

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# The least that installs a project in place; real backends are not here for each Python, and do the same.
BACKEND = '''\
import os, subprocess, sysconfig, zipfile
HERE = os.path.dirname(os.path.abspath(__file__))
METADATA = """Metadata-Version: 2.1
Name: churn
Version: 4.2
Requires-Dist: numpy
Requires-Dist: scikit-learn
"""
def build_editable(folder, config_settings=None, metadata_directory=None):
    src = os.path.join(HERE, "src")
    target = os.path.join(src, "churn", "_fast" + sysconfig.get_config_var("EXT_SUFFIX"))
    include = "-I" + sysconfig.get_path("include")
    subprocess.run(["cc", "-shared", "-fPIC", include, os.path.join(HERE, "fast.c"), "-o", target], check=True)
    name = "churn-4.2-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("churn.pth", src)
        wheel.writestr("churn-4.2.dist-info/METADATA", METADATA)
        wheel.writestr("churn-4.2.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("churn-4.2.dist-info/entry_points.txt", "[churn.plugins]\\nspread = churn.model:Spread\\n")
        wheel.writestr("churn-4.2.dist-info/RECORD", "")
    return name
'''

FAST = """\
#include <Python.h>
static PyObject *twice(PyObject *self, PyObject *x) { return PyNumber_Add(x, x); }
static PyMethodDef methods[] = {{"twice", twice, METH_O, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", 0, -1, methods};
PyMODINIT_FUNC PyInit__fast(void) { return PyModule_Create(&module); }
"""

MODEL = """\
import importlib.resources, json
from sklearn.base import BaseEstimator, TransformerMixin
from churn import _fast
class Spread(TransformerMixin, BaseEstimator):
    def __init__(self, power=1):
        self.power = power
    def fit(self, X, y=None):
        text = importlib.resources.files("churn").joinpath("data/weights.json").read_text()
        self.weight_ = json.loads(text)["weight"]
        return self
    def transform(self, X):
        return _fast.twice(X) ** self.power * self.weight_
"""

HELPERS = """\
import csv, importlib.metadata, os
import corp_stats
FACTOR = 1
def row(number):
    from churn.deep import lazily
    with open("data/train.csv") as file:
        values = [float(value) for value in list(csv.reader(file))[number]]
    about = [importlib.metadata.version(name) for name in ("churn", "corp-stats")]
    about += [point.name for point in importlib.metadata.entry_points(group="churn.plugins")]
    return [FACTOR * corp_stats.mean(values), lazily.OFFSET, os.environ["CHURN_STAGE"], os.getcwd() != "/", about]
"""

PROGRAM = """\
import glob, json, os, sys
import numpy as np
import skyward as sky
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
import churn, helpers

def search(n_jobs, memory=None):
    table = np.loadtxt("data/train.csv", delimiter=",")
    steps = Pipeline([("spread", churn.Spread()), ("model", LogisticRegression())], memory=memory)
    grid = {"spread__power": [1, 2], "model__C": [0.1, 1.0, 10.0]}
    found = GridSearchCV(steps, grid, cv=3, n_jobs=n_jobs).fit(table[:, 1:], table[:, 0])
    return [found.best_params_, found.cv_results_["mean_test_score"].tolist()]

def rows(n_jobs):
    return Parallel(n_jobs=n_jobs)(delayed(helpers.row)(number) for number in range(6))

def edit():
    with open("helpers.py") as file:
        text = file.read()
    with open("helpers.new", "w") as file:
        file.write(text.replace("FACTOR = 1", "FACTOR = 100"))
    os.replace("helpers.new", "helpers.py")

def everything(provider, options):
    image = sky.Image(env_from=[".env"], **options.pop("image"))
    volume = sky.LocalVolume("data", "./data")
    with sky.Compute(provider, image=image, volume=[volume], concurrency=2, plugins=[sky.plugins.sklearn()], **options):
        there = [search(-1, "./cache"), rows(-1)]
        edit()
        kept = len(glob.glob("cache/joblib/**/output.pkl", recursive=True))
        return [*there, rows(-1), kept]
"""

MAIN = """
def provider(kind, given):
    if kind == "aws":
        quick = type("AWS", (sky.AWS,), {"poll": 0.2, "listing_delay": 2.0, "retry_for": 4.0})
        return quick(**given)
    return {"local": sky.Local, "ssh": sky.SSH}[kind](**given)

if __name__ == "__main__":
    kind, given, options = json.loads(sys.argv[1])
    os.environ["CHURN_STAGE"] = "test"
    here = [search(None), rows(1)]
    del os.environ["CHURN_STAGE"]
    print(json.dumps([here, everything(provider(kind, given), options)]))
"""

CELLS = (
    "import site\nsite.addsitedir({site!r})\n%load_ext autoreload\n%autoreload 2",
    PROGRAM,
    'print(json.dumps(everything(sky.Local(), {"image": {}, "console": False})))',
    "helpers.FACTOR",
)
"""Of the notebook, which runs on this machine; `site` is a folder of packages."""

FILES = {
    "pyproject.toml": PYPROJECT,
    "backend.py": BACKEND,
    "fast.c": FAST,
    "src/churn/__init__.py": "from churn.model import Spread\n",
    "src/churn/model.py": MODEL,
    "src/churn/deep/__init__.py": "",
    "src/churn/deep/lazily.py": "OFFSET = 7\n",
    "src/churn/data/weights.json": '{"weight": 0.5}',
    "helpers.py": HELPERS,
    "script.py": PROGRAM + MAIN,
    ".env": 'export CHURN_STAGE="test"  # not a secret\n',
    "data/train.csv": "".join(f"{n % 2},{n % 7},{n * n % 11},{(n % 2) * 3 + n % 5}\n" for n in range(60)),
    ".gitignore": "*.so\n",
    "notes/odd \n name.txt": "not for nodes",
}


@dataclass(frozen=True)
class Project:
    """A project that is installed.

    Attributes
    ----------
    folder
        Where it lies.
    python
        The interpreter of its environment.
    site
        Where its packages are.
    """

    folder: Path
    python: Path
    site: Path

    def run(self, kind: str, given: dict[str, Any], options: dict[str, Any], **variables: str) -> list[Any]:
        """Run the program; return what it computed by itself, and what on a pool's nodes, before and after an edit.

        Parameters
        ----------
        kind, given
            The provider's name, and its arguments.
        options
            Arguments of the pool.
        variables
            Environment variables.
        """
        (self.folder / "helpers.py").write_text(HELPERS)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.python), "script.py", json.dumps([kind, given, options])],
            cwd=self.folder,
            env={**inherited, **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def make(folder: Path) -> Project:
    """Write the project, make its environment, and install it with its private wheel.

    Parameters
    ----------
    folder
        A new one is made in it.
    """
    project = folder / "project"
    for path, text in FILES.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    wheel = folder / "corp_stats-3.1-py3-none-any.whl"
    _write_wheel(wheel, {"corp_stats.py": "def mean(values):\n    return sum(values) / len(values)\n"})
    uv = uv_here()
    assert uv is not None
    venv = folder / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True, timeout=120)
    python = venv / "bin/python"
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python)]
    subprocess.run([*command, str(wheel), "--editable", str(project)], check=True, timeout=120)
    site = next(venv.glob("lib/python*/site-packages"))
    around = sysconfig.get_path("purelib")
    (site / "_around.pth").write_text(f"import site; site.addsitedir({around!r})\n")
    return Project(project, python, site)


def _write_wheel(path: Path, files: Mapping[str, str]) -> None:
    name, version, tag = path.stem.split("-", 2)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        lines = [*files, f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"]
        wheel.writestr(f"{info}/RECORD", "".join(f"{line},,\n" for line in lines))
