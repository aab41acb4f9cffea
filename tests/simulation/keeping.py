"""What must be kept before others may rely on it: files that tasks write, and results of cached functions."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyward.core.tasks.kept_calls import KINDS, Kind
from tests.simulation.load import carry_out
from tests.simulation.world import MEMORY, World

__all__ = ["Cached", "ResultFile", "Saving"]


class Saving:
    """Saves what the tasks of one machine write, as a bucket's copies are saved.

    Parameters
    ----------
    world
        Where it is.
    saved
        Told of each task whose files are saved.
    """

    def __init__(self, world: World, saved: Callable[[int], object]) -> None:
        self.fails = 0
        """How many more times it will not work."""
        self._world = world
        self._saved = saved
        self._written: dict[int, int] = {}  # task -> the process that ran it

    def __repr__(self) -> str:
        return f"<Saving, {len(self._written)} unsaved>"

    def wrote(self, task: int, pid: int) -> None:
        """Take note that a task has ended, and has written something."""
        self._written[task] = pid

    def save(self, groups: frozenset[int] | None) -> str | None:
        """Save what these processes have written, or all; as `HeldAnswers` wants it."""
        if self.fails > 0:
            self.fails -= 1
            return "simulated: no room"
        done = [task for task, pid in self._written.items() if groups is None or pid in groups]
        for task in done:
            del self._written[task]
            self._saved(task)
        return None


class Cached:
    """A function whose results are kept: of equal calls one is computed at a time, until one has succeeded.

    Parameters
    ----------
    key
        What equal calls have in common.
    kept
        The results so far.
    """

    def __init__(self, key: int, kept: dict[int, Any]) -> None:
        self.key = key
        self._kept = kept

    def make(self, _: Sequence[Any], __: Mapping[str, Any]) -> Cached:
        """Make a `KeptCall`."""
        return self

    # --- as a KeptCall ---

    @property
    def function(self) -> Callable[..., Any]:
        """What computes it."""
        return carry_out

    def find(self) -> tuple[Any] | None:
        """Return the result if it is kept."""
        return (self._kept[self.key],) if self.key in self._kept else None

    def detach(self) -> None:
        """Nothing of the arguments is needed."""

    def keep(self, result: Any, _: float) -> Any:
        """Keep a result."""
        self._kept[self.key] = result
        return result


class ResultFile:
    """The file in which a program keeps its results from run to run."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="skyward-simulation-", dir=MEMORY)
        self._path = Path(self._folder, "program.results")
        self._away = Path(self._folder, "away")

    def __repr__(self) -> str:
        return f"<ResultFile {self._path}>"

    @property
    def path(self) -> str:
        """Where it is."""
        return str(self._path)

    def take_away(self) -> None:
        """Let nobody find it for a while."""
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(self._away)

    def bring_back(self) -> None:
        """Put it where it was."""
        with contextlib.suppress(FileNotFoundError):
            self._away.rename(self._path)

    def as_it_is(self) -> ResultFile:
        """Return what a process leaves that is killed at this moment."""
        self.bring_back()
        left = ResultFile()
        shutil.copytree(self._folder, left._folder, dirs_exist_ok=True)
        return left

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self._folder, ignore_errors=True)


KINDS[Cached] = Kind(lambda _: True, lambda cached, args, kwargs: cached.make(args, kwargs))
