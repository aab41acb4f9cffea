"""What nodes would get for a script, which is not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def doctor(folder: Path, *options: str) -> tuple[int, Any]:
    """In a process of its own, since it takes the script's place in sys.modules."""
    program = f"import sys; sys.path.append({str(REPOSITORY)!r}); from skyward.cli import app; app()"
    command = [sys.executable, "-c", program, "doctor", "--image", "script.py", "--json", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_each_item_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import helpers, numpy\nraise SystemExit('it was run')\n")
    (tmp_path / "helpers.py").write_text("def f():\n    import deeper\n")
    (tmp_path / "deeper.py").write_text("")
    code, found = doctor(tmp_path)
    details = {item["what"]: item["detail"] for item in found}
    assert code == 0
    assert details["helpers"] == f"27 bytes from {tmp_path}/helpers.py, since your program imports it"
    assert details["deeper"] == f"0 bytes from {tmp_path}/deeper.py, since helpers.py imports it"
    assert details["total"] == "2 modules, 1 kB"
    assert details["imported"] == "numpy"


@pytest.mark.slow
def test_an_error_is_shown_and_counts(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import churn\n")
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn/__init__.py").write_text("")
    (tmp_path / "churn/link").symlink_to("/etc")
    code, found = doctor(tmp_path)
    assert code == 1
    assert ["outside of its package" in item["detail"] for item in found if not item["ok"]] == [True]
