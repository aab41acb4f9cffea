"""What the driver sets after its pool began reaches tasks on the same machine."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.payload import exceptions, pickling
from skyward.core.payload.surroundings import Surroundings, Within
from skyward.core.protocol.messages import THREAD_VARIABLES
from skyward.joblib_ext.plugin import JoblibPlugin


def seen(*names: str) -> dict[str, Any]:
    """What a task finds."""
    return {
        "variables": {name: os.environ.get(name) for name in names},
        "child": [os.popen(f"printenv {name}").read().strip() or None for name in names],
        "folder": os.getcwd(),
        "argv": list(sys.argv),
        "path": list(sys.path),
        "zone": time.tzname[0],
        "temporary": tempfile.gettempdir(),
    }


NAMES = ("CASE_NEW", "CASE_OLD", "CASE_GIVEN", "OMP_NUM_THREADS")


@pytest.mark.slow
def test_whatever_changes_reaches_tasks_and_goes_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASE_OLD", "old")
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    image = sky.Image(env={"CASE_GIVEN": "image"})
    with sky.Compute(concurrency=2, image=image, plugins=[JoblibPlugin()], console=False) as pool:
        first = pool.submit(seen, *NAMES).result()
        assert first["variables"] == dict(zip(NAMES, (None, "old", "image", first["child"][-1]), strict=True))
        assert first["argv"] == sys.argv
        with monkeypatch.context() as patch:
            patch.setenv("CASE_NEW", "new")
            patch.delenv("CASE_OLD")
            patch.setenv("CASE_GIVEN", "mine")
            patch.setenv("OMP_NUM_THREADS", "3")
            patch.setenv("TZ", "Asia/Tokyo")
            patch.setenv("TMPDIR", str(tmp_path))
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["other.py", "1"])
            patch.setattr(sys, "path", ["relative", *sys.path])
            (tmp_path / "relative").mkdir()
            (tmp_path / "relative" / "case_of_surroundings.py").write_text("def double(x): return 2 * x")
            import case_of_surroundings  # type: ignore[import-not-found]

            for changed in [pool.submit(seen, *NAMES).result(), *Parallel(-1)([delayed(seen)(*NAMES)] * 4)]:
                assert list(changed["variables"].values()) == changed["child"] == ["new", None, "image", "3"]
                assert changed["folder"] == changed["temporary"] == str(tmp_path)
                assert changed["argv"] == ["other.py", "1"]
                assert changed["path"][0] == str(tmp_path / "relative")
                assert changed["zone"] == "JST"
            assert list(pool.map(case_of_surroundings.double, range(3))) == [0, 2, 4]
            assert Parallel(-1)(delayed(case_of_surroundings.double)(i) for i in range(3)) == [0, 2, 4]
            del sys.modules["case_of_surroundings"]
        last = pool.submit(seen, *NAMES).result()
        assert str(tmp_path / "relative") not in last["path"]
        assert {name: last[name] for name in last if name != "path"} == {k: first[k] for k in first if k != "path"}


def blas_threads() -> set[int]:
    import numpy
    import threadpoolctl

    numpy.dot(numpy.ones((8, 8)), numpy.ones((8, 8)))
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.slow
def test_surroundings_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables, arguments and folders are bytes to the system; a pool that begins among such hands them on."""
    odd = "caf\udce9"
    (tmp_path / odd).mkdir()
    monkeypatch.chdir(tmp_path / odd)
    monkeypatch.setenv("CASE_OLD", odd)
    monkeypatch.setattr(sys, "argv", ["script.py", odd])
    monkeypatch.syspath_prepend(tmp_path / odd)
    with sky.Compute(image=sky.Image(env={"CASE_GIVEN": odd}), console=False) as pool:
        found = pool.submit(seen).result()
        assert [pool.submit(os.getenv, name).result() for name in ("CASE_OLD", "CASE_GIVEN")] == [odd, odd]
    assert (found["folder"], found["argv"]) == (os.getcwd(), sys.argv)
    assert str(tmp_path / odd) in found["path"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, 2])
def test_threads_of_libraries_that_are_loaded_already(monkeypatch: pytest.MonkeyPatch, given: int | None) -> None:
    """`Worker(threads=...)` is what counts where it was given, as when a pool begins."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with sky.Compute(worker=sky.Worker(threads=given), plugins=[JoblibPlugin()], console=False) as pool:
        before = pool.submit(blas_threads).result()
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert pool.submit(blas_threads).result() == (before if given else {3})
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert pool.submit(blas_threads).result() == before


def test_a_change_is_sent_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surroundings, call = Surroundings(shared=True, kept=["KEPT"]), (abs, (1,), {})
    assert Within.of(call, surroundings.now()) is call
    monkeypatch.chdir(tmp_path)
    change = surroundings.now()
    assert (change.number, surroundings.now()) == (1, change)
    assert type(Within.of(call, change)) is Within
    monkeypatch.setenv("SOMETHING", "1")
    monkeypatch.setenv("KEPT", "1")
    details = pickle.loads(surroundings.now().details)
    assert details.variables == {"SOMETHING": "1"}
    monkeypatch.delenv("SOMETHING")
    assert pickle.loads(surroundings.now().details).variables == {"SOMETHING": None}
    tmp_path.rmdir()  # the present folder
    assert surroundings.now().number == 3
    assert Surroundings(shared=False).now().number == 0


def test_a_small_call_stays_small_to_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = Surroundings(shared=True)
    monkeypatch.setenv("SOMETHING", "1")
    within = Within.of((None, (1,), {}), surroundings.now())
    assert pickling._is_plain(within)
    with pytest.raises(sky.PayloadError, match=r"the call\[1\]\[0\] "):
        pickling.dumps(Within.of((abs, (sys._getframe(),), {}), surroundings.now()), "the call")


def raised(error: type[BaseException], look: Any) -> BaseException:
    """An error as it comes from a node."""
    with pytest.raises(error) as caught:
        look()
    return exceptions.load(exceptions.dump(caught.value)[0])


def test_elsewhere_the_error_says_what_is_only_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    missing = raised(KeyError, lambda: os.environ["CASE_HERE"])
    absent = raised(FileNotFoundError, lambda: Path("data.csv").read_bytes())
    other = raised(KeyError, lambda: {}["CASE_HERE"])
    monkeypatch.setenv("CASE_HERE", "1")
    Path("data.csv").touch()
    for error in (missing, absent, other):
        Surroundings(shared=True).explain(error)
        assert not hasattr(error, "__notes__")
        Surroundings(shared=False).explain(error)
    assert "Image(env_from=['CASE_HERE'])" in missing.__notes__[0]
    assert str(tmp_path) in absent.__notes__[0]
    assert not hasattr(other, "__notes__")
