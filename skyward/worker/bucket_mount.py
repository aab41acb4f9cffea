"""A bucket's folder, mounted as a read-only file system whose content is fetched as tasks read it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from skyward.worker.mounts import mounted_below, unmount
from skyward.worker.rclone import Rclone, RcloneError

__all__ = ["BucketMount"]

_LOOK = 0.5  # seconds between checks that it is still there
_PAUSE = 2.0  # seconds until mounting again is retried
_LIMIT = 60.0  # seconds to mount it
_WARN_AFTER, _LIST = 30.0, 300.0  # seconds to list its folder until the user is warned, and until it has failed

# Content that was read stays on disk, as long as there is room, so that what is read again and again comes from there.
_CACHE = {
    "CacheMode": "full",
    "CacheMaxAge": "8760h",
    "CacheMinFreeSpace": "1Gi",
    "ReadAhead": "16Mi",
    "ReadOnly": True,
    "DirPerms": "555",
    "FilePerms": "444",
}


class BucketMount:
    """A mounted bucket. Methods block, and may be called from any thread.

    Parameters
    ----------
    url
        The bucket's folder, for messages.
    server
        Serves it.
    place
        An empty folder.
    warn
        Called from a thread with warnings for the user.

    Raises
    ------
    OSError
        It can't be mounted.
    """

    def __init__(self, url: str, server: Rclone, place: str, warn: Callable[[str], object]) -> None:
        self._url = url
        self._server = server
        self._place = place
        self._real = os.path.realpath(place)
        self._warn = warn
        self._closed = threading.Event()
        self._mount()
        self._watcher = threading.Thread(target=self._watch, name="skyward-bucket-mount", daemon=True)
        self._watcher.start()

    def __repr__(self) -> str:
        return f"<BucketMount of {self._url} at {self._place}>"

    def close(self) -> None:
        """End the server, and unmount it."""
        self._closed.set()
        self._server.close()  # this frees whoever waits for it, even if it is frozen
        self._watcher.join()
        unmount(self._place)

    def _mount(self) -> None:
        values = {"fs": self._server.source, "mountPoint": self._place, "mountType": "mount", "vfsOpt": _CACHE}
        self._server.call("mount/mount", values, _LIMIT)
        found = self._server.call("vfs/refresh", {}, look=self._make_look())["result"][""]
        if found != "OK":
            raise RcloneError(found)
        os.listdir(self._place)  # noqa: PTH208 - fails where it is mounted and can't be read

    def _make_look(self) -> Callable[[], None]:
        """Return what is called while rclone lists the folder, so that nobody waits forever, or without a message."""
        began, warned = time.monotonic(), False
        problem = "the store has not listed the folder within"

        def look() -> None:
            nonlocal warned
            waited = time.monotonic() - began
            if self._closed.is_set():
                raise RcloneError("the pool was closed")
            if waited > _LIST:
                raise RcloneError(f"{problem} {_LIST:.0f} s")
            if waited > _WARN_AFTER and not warned:
                warned = True
                self._warn(f"{self._url}: {problem} {_WARN_AFTER:.0f} s (limit: {_LIST:.0f} s)")

        return look

    def _watch(self) -> None:
        """Mount it again if its server dies."""
        while not self._closed.wait(_LOOK):
            if self._is_there():
                continue
            self._warn(f"rclone has ended or hangs, and {self._url} is mounted again; tasks that read there may fail")
            self._server.stop()
            while not self._closed.is_set():
                unmount(self._place)
                with contextlib.suppress(OSError):
                    self._server.start()
                    self._mount()
                    break
                self._closed.wait(_PAUSE)

    def _is_there(self) -> bool:
        """Look without touching it, which would take for ever where rclone hangs."""
        return self._server.answers() and self._real in mounted_below(os.path.dirname(self._real))
