"""The code for nodes is a zip that Python imports from."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile

import pytest

from skyward.core.nodes import node_package


@pytest.mark.slow
def test_the_code_is_a_zip_that_is_always_the_same_and_imports(tmp_path):
    assert node_package.node_code.__wrapped__() == node_package.node_code.__wrapped__()
    path = tmp_path / node_package.node_code_name()
    path.write_bytes(node_package.node_code())
    names = zipfile.ZipFile(io.BytesIO(node_package.node_code())).namelist()
    assert {"skyward/worker/agent.py", "skyward/worker/agent.pyc", "skyward/core/protocol/wire.py"} <= set(names)
    assert not [name for name in names if name.split("/")[1] in ("cli", "providers", "testing", "transport")]
    code = (
        "import skyward.worker.agent as a, inspect, importlib.util;"
        "print(a.__file__); print(a.__spec__.cached); inspect.getsource(a);"
        "import skyward.joblib_ext"
    )
    env = {"PYTHONPATH": str(path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}/skyward/worker/agent.pyc")
