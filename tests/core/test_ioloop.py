"""The pool's own loop: a standard one whatever policy the user has, and no failure on it goes unheard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio
import skyward as sky

async def main():
    with sky.Compute(nodes=2, console=False) as pool:
        return await asyncio.wrap_future(pool.submit(abs, -7))

if __name__ == "__main__":
    print(asyncio.run(main()), type(asyncio.new_event_loop()).__module__)
"""


def test_a_pool_works_whatever_loop_policy_there_is(tmp_path: Path) -> None:
    """Set in the driver, in agents and in slots, by a module that all of them import at their start."""
    (tmp_path / "sitecustomize.py").write_text("import uvloop\nuvloop.install()\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=False, env=env, capture_output=True, text=True)
    assert done.stdout == "7 uvloop\n", done.stderr
    assert not done.stderr
