"""A folder of the user's that every node has before it gets tasks (`LocalVolume`): real files and the real supply."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from skyward.core.files.folder import Folder, scan
from skyward.core.volumes import LocalVolume
from tests.simulation.world import MEMORY

__all__ = ["UsersFolder"]

_PLACE = "data"


class UsersFolder:
    """The folder on the driver's disk.

    Parameters
    ----------
    seed
        What is in its files is drawn from it.
    sizes
        Bytes of each file.
    """

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self._path = tempfile.mkdtemp(prefix="skyward-simulation-", dir=MEMORY)
        self._files = {
            f"{number % 2}/{number}": hashlib.shake_128(f"{seed} {number}".encode()).digest(size)
            for number, size in enumerate(sizes)
        }
        self.restore()

    def restore(self) -> None:
        """Write its files, or those that are lost."""
        for name, data in self._files.items():
            file = Path(self._path, name)
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)
                os.utime(file, (0, 0))  # it is sent, and a seed has to replay

    def __repr__(self) -> str:
        return f"<UsersFolder of {len(self._files)} files>"

    @property
    def volume(self) -> tuple[LocalVolume, Folder]:
        """It as a pool takes it."""
        return LocalVolume(_PLACE, self._path), scan(self._path)

    @property
    def cache(self) -> str:
        """Where nodes on the driver's machine keep it between pools."""
        return f"{self._path}.cache"

    def lose(self) -> None:
        """Let its first file vanish."""
        Path(self._path, next(iter(self._files))).unlink(missing_ok=True)

    def differs(self, work: str) -> list[str]:
        """Which of the files are not as they should be, seen from a task that runs in this folder."""
        return [name for name, data in self._files.items() if not _is(Path(work, _PLACE, name), data)]

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self._path, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)


def _is(file: Path, data: bytes) -> bool:
    try:
        return file.read_bytes() == data
    except OSError:
        return False
