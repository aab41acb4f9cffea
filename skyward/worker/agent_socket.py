"""The socket on which an agent waits for its owner, and the private folder that contains it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from pathlib import Path

from skyward.core.system.socket_paths import socket_path
from skyward.worker import scratch

__all__ = ["listen"]

_NO_SOCKETS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # a file system without sockets


def listen(where: str) -> tuple[socket.socket, str, str]:
    """Listen for the owner.

    Parameters
    ----------
    where
        See `agent.Start.listen`.

    Returns
    -------
    tuple
        The listening socket, its address for the owner, and the agent's private folder.

    Raises
    ------
    ValueError
        There is no such way to listen.
    OSError
        Neither the folder nor another one can be used.
    SystemExit
        Another agent listens there.
    """
    if where == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        return listener, f"127.0.0.1:{listener.getsockname()[1]}", scratch.make(tempfile.gettempdir(), "agent")[0]
    if where == "unix":
        where = f"unix:{scratch.make(tempfile.gettempdir(), 'agent')[0]}/agent.sock"
    path = where.removeprefix("unix:")
    folder = Path(path).parent
    if not where.startswith("unix:/"):
        raise ValueError(f"can't listen on {where!r}: neither tcp nor unix nor unix:/path")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user's; name another one")
    try:
        folder.chmod(0o700)
        return _bind(path), path, str(folder)
    except OSError as error:
        if error.errno not in _NO_SOCKETS:
            raise
        return _listen_elsewhere(error)


def _bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(OSError), socket_path(path) as name:
        listener.connect(name)
        raise SystemExit(f"skyward: another agent listens at {path}")
    listener.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    with socket_path(path) as name:
        listener.bind(name)
    listener.listen(16)
    return listener


def _listen_elsewhere(why: OSError) -> tuple[socket.socket, str, str]:
    """Listen in a new folder, since the file system of the intended one has no sockets (vfat, some of FUSE)."""
    # The system's runtime folder comes last, as it may be removed at logout, which the agent outlives.
    for place in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}"):
        if place and Path(place).is_dir():
            with contextlib.suppress(OSError):
                folder = scratch.make(place, "agent")[0]
                path = f"{folder}/agent.sock"
                return _bind(path), path, folder
    raise why
