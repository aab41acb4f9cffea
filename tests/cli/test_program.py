"""``skyward run``: a program sees what it sees under Python, and its Parallel runs on the pool."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
    import os, sys
    from joblib import Parallel, delayed
    import helper

    def where(i):
        return os.environ.get("SKYWARD_NODE"), helper.double(i)

    if __name__ == "__main__":
        print(sys.argv[1:], os.path.basename(__file__), sys.path[0] == os.path.dirname(os.path.abspath(__file__)))
        print(sorted(Parallel(n_jobs=-1, batch_size=1)(delayed(where)(i) for i in range(4))))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    (project / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (project / "train.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.chdir(project)
    return project


def run(*arguments: str, input: str | None = None, python: bool = False) -> subprocess.CompletedProcess[str]:
    program = [] if python else ["-m", "skyward.cli", "run", "--concurrency", "1"]
    return subprocess.run(
        [sys.executable, *program, *arguments], input=input, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_programs_parallel_runs_on_the_nodes() -> None:
    """Its own modules, beside it, are found here and there; options after its name are its own."""
    done = run("--nodes", "2", "train.py", "--nodes", "7", "-m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "['--nodes', '7', '-m'] train.py True"
    nodes = eval(done.stdout.splitlines()[1])
    assert {node for node, _ in nodes} <= {"node-1", "node-2"}
    assert sorted(value for _, value in nodes) == [0, 2, 4, 6]


def test_a_module_and_a_package(folder: Path) -> None:
    package = folder / "churn"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "values.py").write_text("A = 5\n")
    (package / "__main__.py").write_text(
        "import sys\nfrom joblib import Parallel, delayed\nfrom .values import A\n"
        "print(__name__, __package__, __spec__.name, sys.argv[1:])\nprint(Parallel(n_jobs=-1)([delayed(abs)(-A)]))\n"
    )
    done = run("-m", "churn", "x")
    assert (done.returncode, done.stdout) == (0, "__main__ churn churn.__main__ ['x']\n[5]\n"), done.stderr
    assert run("-m", "train").stdout.startswith("[] train.py True\n")


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(7)",
        "sys.exit('said')",
        "sys.exit()",
        "raise KeyError('mine')",
        "def inner():\n    1 / 0\ninner()",
        "raise KeyboardInterrupt",
        "print(sys.stdin.read())",
        "import multiprocessing\nprint(multiprocessing.get_context('fork').Pool(1).map(abs, [-3]))",
        "def f(x: int): pass\nprint(f.__annotations__)",
        "import os\nos.chdir('/')\nprint(len(open(__file__).read()), sys.argv[1:])",
        "import concurrent.futures as c, multiprocessing as m\nclass P:\n    pass\ndef g(_):\n    return P()\n"
        "if __name__ == '__main__':\n    with c.ProcessPoolExecutor(1, m.get_context('spawn')) as e:\n"
        "        print(isinstance(e.submit(g, 1).result(60), P))",
        "x = (",
        "import atexit\natexit.register(print, 'the end')",
    ],
)
def test_it_ends_as_under_python(folder: Path, ending: str) -> None:
    """Exit status, output and traceback are those of `python PROGRAM`; after Ctrl-C a shell sees 130 both ways."""
    (folder / "ends.py").write_text(f"import sys\n{ending}\n")
    ours, pythons = run("ends.py", input="hello"), run("ends.py", input="hello", python=True)
    assert ours.stdout == pythons.stdout
    status = 130 if pythons.returncode == -signal.SIGINT else pythons.returncode
    assert ours.returncode == status
    lines = [line for line in ours.stderr.splitlines() if "no task was sent" not in line]
    assert lines == pythons.stderr.splitlines()
