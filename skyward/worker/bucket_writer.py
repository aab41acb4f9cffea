"""Saves what tasks write in a folder to its bucket. Nothing is ever removed from the bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from skyward.worker.rclone import Rclone
from skyward.worker.unsaved_files import Changed, UnsavedFiles

__all__ = ["PATIENCE", "BucketWriter"]

PATIENCE = 60.0  # seconds to keep retrying a store that can't be written to
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between retries
_AT_ONCE = 8  # files


class BucketWriter:
    """Saves the files of one folder. Methods block, and are called one at a time, apart from `close`.

    Parameters
    ----------
    url
        The bucket's folder, for messages.
    server
        Writes to it.
    folder, copies
        See `UnsavedFiles`.
    warn
        Called from any thread with warnings for the user.
    patience
        See `PATIENCE`.
    """

    def __init__(
        self,
        url: str,
        server: Rclone,
        folder: str,
        copies: str,
        warn: Callable[[str], object],
        patience: float = PATIENCE,
    ) -> None:
        self._url = url
        self._server = server
        self._folder = folder
        self._files = UnsavedFiles(folder, copies)
        self._warn = warn
        self._patience = patience
        self._failed = False  # the last time
        self._warned = False  # that an upload stands still; once for all files that are saved together
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"<BucketWriter {self._folder} to {self._url}>"

    def save(self, groups: frozenset[int] | None) -> str | None:
        """Save what was written before now; returns what can't be saved, and why.

        Parameters
        ----------
        groups
            See `UnsavedFiles.find`.
        """
        deadline, pause, self._warned = None, _PAUSE, False
        while True:
            found, problems = self._files.find(groups)
            failures = self._upload(found)
            if not failures:
                self._failed = False
                return self._said(problems)
            now = time.monotonic()
            if deadline is None:
                deadline = now if self._failed else now + self._patience
                if not self._failed:
                    self._warn(f"{self._said(failures)}; it is tried again for {self._patience:.0f} s")
            if now >= deadline or self._closed.wait(pause):
                self._failed = True
                return self._said([*problems, *failures])
            pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Stop retrying; may be called from any thread."""
        self._closed.set()

    def _said(self, problems: Sequence[str]) -> str | None:
        if not problems:
            return None
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return f"{self._url}{problems[0]}{more}"

    def _upload(self, files: Sequence[Changed]) -> list[str]:
        """Write files to the bucket; returns what went wrong, each with its file."""
        if not files:
            return []
        try:
            self._server.start()
        except OSError as error:
            for file in files:
                self._files.drop(file)
            return [f"{files[0].name}: {error}"]
        if len(files) == 1:
            results = [self._upload_one(files[0])]
        else:
            with ThreadPoolExecutor(_AT_ONCE, "skyward-bucket") as threads:
                results = list(threads.map(self._upload_one, files))
        return [result for result in results if result is not None]

    def _upload_one(self, file: Changed) -> str | None:
        try:
            self._send(file)
            changed = self._files.copy(file)
        except OSError as error:
            if file.stamp is not None and not self._files.is_there(file):
                return None  # it was removed meanwhile
            try:
                changed = self._files.copy(file)  # it may have failed since the file changed
                if changed is None:
                    self._files.drop(file)
                    return f"{file.name}: {error}"
            except OSError as problem:
                return f"{file.name}: {problem}"
        if changed is not None:
            file = changed
            try:
                self._send(file)
            except OSError as error:
                self._files.drop(file)
                return f"{file.name}: {error}"
        self._files.saved(file)
        return None

    def _send(self, file: Changed) -> None:
        folder, _, name = file.path.rpartition("/")
        values = {
            "srcFs": f":local,copy_links:{folder}", "srcRemote": name,
            "dstFs": self._server.source, "dstRemote": file.name,
            "_config": {"NoCheckDest": True, "IgnoreTimes": True},
        }  # fmt: skip
        self._server.copy("operations/copyfile", values, lambda text: self._tell(f"{self._url}{file.name}: {text}"))

    def _tell(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)
