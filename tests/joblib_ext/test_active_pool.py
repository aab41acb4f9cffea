"""What is imported changes nothing of core, and a pool nothing of joblib once it is closed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import joblib
import pytest
from joblib.parallel import BACKENDS

import skyward as sky
from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.slot_backend import NAME


def run(script: str) -> None:
    """In a process that has loaded nothing."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_imports_leave_the_pickler_as_it_is() -> None:
    run(
        """
        import importlib, pkgutil
        import skyward.joblib_ext
        import skyward.core.running_pool
        from skyward.core.payload import pickling
        before = dict(pickling.PLAIN), list(pickling.CLASS_REDUCERS)
        for found in pkgutil.iter_modules(skyward.joblib_ext.__path__):
            importlib.import_module(f"skyward.joblib_ext.{found.name}")
        ours = {kind for kind in pickling.PLAIN if kind.__module__.startswith("skyward.joblib_ext.")}
        others = {kind: parts for kind, parts in pickling.PLAIN.items() if kind not in ours}
        assert before == (others, pickling.CLASS_REDUCERS)
        """
    )


@pytest.mark.slow
def test_a_pool_loads_no_joblib() -> None:
    run(
        """
        import sys
        import skyward as sky
        with sky.Compute(console=False):
            assert not [name for name in sys.modules if name.partition(".")[0] == "joblib"]
        assert not any("_Watch" in repr(finder) for finder in sys.meta_path)
        """
    )


def test_the_name_is_registered_and_the_default_is_put_back() -> None:
    with sky.Compute(console=False):
        assert BACKENDS[NAME] is SkywardBackend
        assert joblib.parallel.DEFAULT_BACKEND == "skyward-default"
    assert joblib.parallel.DEFAULT_BACKEND == "loky"
