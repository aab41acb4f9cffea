"""What is sent of a cached function prints what joblib prints, and does without joblib otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from joblib import Memory

from skyward.core.errors import PayloadError
from skyward.joblib_ext.computing import Computing, check_code, code_mark


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


def test_a_function_with_another_source_is_not_run() -> None:
    other = Computing(halve, 0, code_mark(lambda x: x // 3))
    with pytest.raises(PayloadError, match=r"halve has a different source.*open a new pool"):
        other(4)
    check_code(halve, "2.7 0123")  # of another Python
    check_code(halve, "")
    check_code(abs, code_mark(halve))


def test_the_mark_of_a_function_is_the_same_in_each_process() -> None:
    """Though the order of a set is not."""
    program = (
        "from skyward.joblib_ext.computing import code_mark\n"
        "print(code_mark(lambda x: [part in {'a', 'b', 'c'} for part in x]))"
    )
    marks = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(marks) == 1
    assert code_mark(halve) != code_mark(lambda x: x / 3)
    assert code_mark(abs) == ""
