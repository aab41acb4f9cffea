"""What is sent of a cached function prints what joblib prints, and does without joblib otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import cloudpickle
import pytest
from joblib import Memory

from skyward.joblib_ext.computing import Computing


def halve(x: float) -> float:
    return x / 2


@pytest.mark.parametrize("verbose", [0, 1, 5])
def test_it_prints_what_joblib_prints(verbose: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    computing: Computing = cloudpickle.loads(cloudpickle.dumps(Computing(halve, verbose)))
    assert (computing(x=5), computing.label, repr(computing)) == (2.5, "halve", "<Computing halve>")
    ours = capsys.readouterr().out
    memorized = Memory(str(tmp_path), verbose=verbose).cache(halve)
    capsys.readouterr()
    memorized(x=5)
    theirs = capsys.readouterr().out
    assert re.sub(r"\d+\.\d+s", "", ours) == re.sub(r"\d+\.\d+s", "", theirs)
    assert bool(ours) == (verbose > 0)
