"""The backend's name in a task: threads of the slot, or a pool that the task opens."""

from __future__ import annotations

import os
import sys
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config

import skyward as sky

pytestmark = pytest.mark.usefixtures("pool")


def where() -> tuple[str | None, int]:
    return os.environ.get("SKYWARD_NODE"), os.getpid()


def counted() -> tuple[list[int], int]:
    with parallel_config(backend="skyward"):
        counts = [joblib.effective_n_jobs(n_jobs) for n_jobs in (1, 3, None, -1)]
    return counts, joblib.cpu_count()


@pytest.mark.slow
def test_jobs_are_counted_as_cores_of_the_slot() -> None:
    ((counts, cores),) = Parallel(n_jobs=2)([delayed(counted)()])
    assert counts == [1, 3, 1, cores]


def zero() -> str:
    with parallel_config(backend="skyward"), pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.effective_n_jobs(0)
    return "raised"


@pytest.mark.slow
def test_zero_jobs_is_an_error_there_too() -> None:
    assert Parallel(n_jobs=2)([delayed(zero)()]) == ["raised"]


def loaded() -> set[str]:
    return {name for name in sys.modules if name.startswith("skyward.")}


@pytest.mark.slow
def test_a_slot_loads_no_driver() -> None:
    with sky.Compute(plugins=[sky.plugins.joblib()], console=False):
        (names,) = Parallel(n_jobs=-1)([delayed(loaded)()])
    assert "skyward.joblib_ext.slot_backend" in names
    assert not {"skyward.core.pool", "skyward.joblib_ext.backend", "skyward.joblib_ext.call"} & names


def opens(before: bool) -> list[Any]:
    """A pool in a task; joblib was configured before that, or is so in its block."""
    if before:
        with parallel_config(backend="skyward"), sky.Compute(console=False):
            inner = Parallel(n_jobs=-1)([delayed(where)()] * 2)
            jobs = joblib.effective_n_jobs(-1)
    else:
        with sky.Compute(console=False), parallel_config(backend="skyward"):
            inner = Parallel(n_jobs=-1)([delayed(where)()] * 2)
            jobs = joblib.effective_n_jobs(-1)
    after = Parallel(n_jobs=2, backend="skyward")([delayed(where)()] * 2)
    return [os.getpid(), jobs, inner, after]


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_pool_that_a_task_opens_is_meant_there(before: bool) -> None:
    ((pid, jobs, inner, after),) = Parallel(n_jobs=2)([delayed(opens)(before)])
    assert jobs == 1
    assert {name for name, _ in inner} == {"node-1"}
    assert pid not in {other for _, other in inner}
    assert {other for _, other in after} == {pid}
