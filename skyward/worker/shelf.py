"""Large results that are left in files for an owner on this machine, who maps them: nothing is sent or copied again."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence

from skyward.core.payload import LARGE
from skyward.core.shared import remove, write_all

__all__ = ["Shelf"]

_MARGIN = 64 * 1024 * 1024  # bytes of the file system that are left to others


class Shelf:
    """Where a slot leaves them.

    Parameters
    ----------
    folder
        A folder of the agent's, which removes it at its end.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<Shelf {self._folder}>"

    def put(self, buffers: Sequence[memoryview]) -> tuple[dict[int, bytes], list[memoryview]]:
        """Write the large ones; their files by index, and the buffers that are left to send."""
        files: dict[int, bytes] = {}
        rest: list[memoryview] = []
        for index, buffer in enumerate(buffers):
            path = self._write(buffer) if len(buffer) >= LARGE else None
            if path is None:
                rest.append(buffer)
            else:
                files[index] = os.fsencode(path)
        return files, rest

    def _write(self, buffer: memoryview) -> str | None:
        """The file's path; None where there is no room, which is no error: it can be sent."""
        path = f"{self._folder}/result-{os.getpid()}-{next(self._numbers)}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            room = os.fstatvfs(fd)
            if room.f_bavail * room.f_frsize < len(buffer) + _MARGIN:
                raise OSError(errno.ENOSPC, "no room in", self._folder)
            write_all(fd, buffer)
        except OSError:
            remove([os.fsencode(path)])
            return None
        finally:
            os.close(fd)
        return path
