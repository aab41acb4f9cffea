"""The user's own modules, real files which the user edits while tasks run, and what tasks may see of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from skyward.core.code.survey import Program
from tests.simulation.world import MEMORY, Process

__all__ = ["UNSEEN", "EditedProgram"]

UNSEEN = 0.2
"""Seconds for which tasks that are submitted one after another may not see an edit."""
_ROUNDING = 0.01  # seconds that pass while a clock is read a few times


class EditedProgram(Program):
    """The program that submits tasks.

    Parameters
    ----------
    process
        Whose time it keeps.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cost = process.world.random.choice((0.0001, 0.002, 0.1))  # seconds that a look at the files takes
        self._used = 0.0
        self._folder = tempfile.mkdtemp(prefix="skyward-simulation-", dir=MEMORY)
        self._modules: dict[str, ModuleType] = {}
        self._imported: dict[str, int] = {}  # how many texts each had had when it was imported
        self._texts: dict[str, list[tuple[float, str]]] = {}  # of each file: what it has said from when on

    def __repr__(self) -> str:
        return f"<EditedProgram with {len(self._modules)} modules>"

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        return self._modules

    @property
    def path(self) -> Sequence[str]:
        return []

    def clock(self) -> float:
        return self._process.time()

    def cpu(self) -> float:
        self._used += self._cost
        return self._used

    # --- what the user does ---

    def write(self, number: int, size: int = 0) -> None:
        """Edit a module; `size`: bytes of which nothing is asked."""
        texts = self._texts.setdefault(name := _name(number), [])
        text = f"edit {len(texts)} of {name}\n"
        self._path(name).write_text(text + "#" * size)
        texts.append((self.now, text))

    def need(self, number: int) -> str:
        """Import a module, unless it is; return its name."""
        if (name := _name(number)) not in self._texts:
            self.write(number)
        if name not in self._modules:
            module = self._modules[name] = ModuleType(name)
            module.__file__ = str(self._path(name))
            self._imported[name] = len(self._texts[name])
        return name

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what tasks may see ---

    @property
    def state(self) -> dict[str, int]:
        """How many texts each module has had by now."""
        return {name: len(self._texts[name]) for name in self._modules}

    def seen(self, name: str, began: Mapping[str, int] | None, *, alone: bool) -> set[str]:
        """What a module may say in a task that is submitted now.

        Parameters
        ----------
        name
            The module.
        began
            The state when the call began that the task belongs to, which runs with the files of that moment; None if it
            belongs to none.
        alone
            Whether no other task is under way.
        """
        now = self.now
        texts = self._texts[name]
        if began is None:
            since = now if alone else now - UNSEEN - _ROUNDING
            return {text for time, text in texts if time > since} | {
                texts[max(sum(time <= since for time, _ in texts) - 1, 0)][1]
            }
        if name in began:
            return {texts[began[name] - 1][1]}
        return {text for _, text in texts[self._imported[name] - 1 :]}

    @property
    def now(self) -> float:
        """What its clock shows; asking does not take time."""
        return self._process.world.now + self._process.offset

    def _path(self, name: str) -> Path:
        return Path(self._folder, f"{name}.py")


def _name(number: int) -> str:
    return f"edited_{number}"
