"""The packages of contrib/, as strangers' packages would be: built, installed beside skyward's wheel, run from there.

Nothing of this repository but the lab (tests/) is on the path of what runs there.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "contrib" / "skyward-hetzner"
# What the suites and the lab need; skyward and its plug-in say themselves what they need.
BESIDES = ("flask", "numpy", "pip", "pypiserver", "pytest", "pytest-timeout", "scikit-learn")


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """skyward's wheel, and the package's."""
    folder = tmp_path_factory.mktemp("dist")
    # Each alone, as a stranger would; from copies, so that a build leaves nothing in the sources.
    for source in (REPOSITORY, PACKAGE):
        copy = folder / source.name
        ignored = shutil.ignore_patterns(".*", "build", "contrib", "__pycache__", "*.egg-info", "benchmarks")
        shutil.copytree(source, copy, ignore=ignored)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy, timeout=300)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def needed(built: list[Path]) -> Path:
    """A folder of all the wheels that they need, in the versions that are installed here; kept between runs."""
    folder = REPOSITORY / "build" / "contrib-wheels" / f"{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True, exist_ok=True)
    pins = "\n".join(
        sorted(
            f"{dist.name}=={dist.version}"
            for dist in importlib.metadata.distributions()
            if not dist.name.startswith("skyward")
        )
    )
    wanted = "\n".join((pins, *BESIDES, *_requirements(built)))
    constraints, done = folder / "constraints.txt", folder / "done.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at a time
        if not done.exists() or done.read_text() != wanted:
            constraints.write_text(pins)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", folder]
            found = [part for wheel in built for part in ("--find-links", wheel.parent)]
            run(*command, *found, "--constraint", constraints, *BESIDES, *built, timeout=800)
            for wheel in folder.glob("skyward*.whl"):
                wheel.unlink()  # those of today are in the other folder
            done.write_text(wanted)
    return folder


def _requirements(wheels: list[Path]) -> list[str]:
    found = []
    for wheel in wheels:
        text = run(sys.executable, "-m", "zipfile", "-l", wheel)
        name = re.search(r"\S+\.dist-info/METADATA", text)
        assert name is not None
        script = "import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]).decode())"
        found += re.findall(r"^Requires-Dist: .+$", run(sys.executable, "-c", script, wheel, name[0]), re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def python(built: list[Path], needed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheels and what they need, and nothing of this repository."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--offline", "--python", sys.executable, folder, cwd=folder.parent)
    found = [part for place in (needed, built[0].parent) for part in ("--find-links", place)]
    constraints = ["--constraint", needed / "constraints.txt"]
    install = ["pip", "install", "--quiet", "--offline", "--no-index", "--no-config", "--python", folder]
    run(*uv, *install, *found, *constraints, *built, *BESIDES, cwd=folder.parent, timeout=300)
    return folder / "bin" / "python"


@pytest.fixture
def apart(tmp_path: Path) -> dict[str, str]:
    """An environment whose only link to this repository is its tests."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "tests").symlink_to(REPOSITORY / "tests")
    dropped = ("PYTHON", "VIRTUAL_ENV", "PYTEST", "HCLOUD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(tmp_path / "path"), "SKYWARD_STATE": str(tmp_path / "state")}


def test_its_wheel_holds_the_package_and_its_door(built: list[Path]):
    (wheel,) = [path for path in built if path.name.startswith("skyward_hetzner")]
    names = run(sys.executable, "-m", "zipfile", "-l", wheel)
    for name in ("skyward_hetzner/provider.py", "skyward_hetzner/py.typed", "dist-info/entry_points.txt"):
        assert name in names
    assert "test" not in names


def test_it_is_found_by_name_and_loaded_only_then(python: Path, apart: dict[str, str], tmp_path: Path):
    script = """\
import sys
import skyward as sky
from skyward.core import registry

assert "hetzner" in registry.names(registry.PROVIDERS)
assert not [name for name in sys.modules if name.startswith(("skyward_hetzner", "libcloud"))]
pool = sky.Compute(provider="hetzner")
print(type(pool.providers[0]).__name__, sky.__file__)
"""
    name, place = run(python, "-c", script, env=apart, cwd=tmp_path).split()
    assert name == "Hetzner"
    assert str(REPOSITORY) not in place


def test_without_credentials_nothing_is_begun(python: Path, apart: dict[str, str], tmp_path: Path):
    script = """\
import skyward as sky

try:
    with sky.Compute(provider="hetzner", console=False):
        raise SystemExit("it was entered")
except sky.AuthFailed as error:
    print(error)
"""
    apart["HCLOUD_CONFIG"] = str(tmp_path / "none")
    assert "HCLOUD_TOKEN" in run(python, "-c", script, env=apart, cwd=tmp_path, timeout=60)


def test_its_own_tests_pass(python: Path, apart: dict[str, str], tmp_path: Path):
    """The conformance suite among them, and joblib on hosts of the lab, where there can be a lab."""
    for name in ("tests", "pyproject.toml"):
        source = PACKAGE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "tests", "--color=no"]
    output = run(*command, env=apart, cwd=tmp_path, timeout=600)
    print(output[-2000:])
    assert re.search(r"\d+ passed", output)
    assert "not installed" not in output, "the package was tested from its sources"
