"""Runs cells in a real notebook's kernel."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

__all__ = ["executed", "texts"]

_ROOT = str(Path(__file__).resolve().parents[1])


def executed(*cells: str, folder: Path) -> list[list[Any]]:
    """Run cells, one after another; return the outputs of each when all have run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    manager = AsyncKernelManager(transport="ipc", ip=str(folder / "kernel"))
    manager.kernel_spec_manager.ensure_native_kernel = True
    client = NotebookClient(notebook, km=manager, timeout=120, allow_errors=True)
    client.execute(cwd=str(folder), env={**os.environ, "PYTHONPATH": _ROOT, "PATH": _path()})
    return [cell.outputs for cell in notebook.cells]


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def texts(outputs: list[Any]) -> list[str]:
    """What is to be read in a cell's outputs, as text."""
    found = []
    for output in outputs:
        if output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        else:
            found.append(output.text if output.output_type == "stream" else output.data["text/plain"])
    return [text for each in found for text in each.rstrip("\n").split("\n")]
