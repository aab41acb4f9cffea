"""Modules are compiled as an import would do it; what is odd is left alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgpack  # noqa: F401  so that it is loaded
import pytest

from skyward.core.packages import compile_ahead
from skyward.core.packages.installed import Installed


@pytest.mark.slow
def test_what_is_listed_is_compiled(tmp_path: Path) -> None:
    names = [f"m{number}.py" for number in range(20)]
    for name in names:
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    lines = "\n".join(["broken.py", *names, "not-here.py", ""])
    command = [sys.executable, "-I", "-c", Path(compile_ahead.__file__).read_text(), "."]
    done = subprocess.run(command, cwd=tmp_path, input=lines, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    compiled = {Path(importlib.util.cache_from_source(str(tmp_path / name))) for name in names}
    assert set((tmp_path / "__pycache__").iterdir()) == compiled
    done = subprocess.run(
        [sys.executable, "-v", "-c", "import m3"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"matches {tmp_path / 'm3.py'}" in done.stderr, "an import takes what was compiled"


def test_what_is_loaded_of_distributions_is_listed() -> None:
    loaded = Installed().loaded()
    assert "msgpack/__init__.py" in loaded
    assert "pytest/__init__.py" in loaded
    assert not [path for path in loaded if path.startswith(("skyward/", "/", "json/")) or not path.endswith(".py")]
