"""Runs commands and writes files on a host, whatever its login shell is, and whatever that prints."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import signal as signals
from typing import Any

import asyncssh

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput
from skyward.transport.ssh_sessions import Sessions
from skyward.transport.ssh_stream import Line, SSHChannel, StreamSession

__all__ = ["SSHShell"]

_STOP = 2.0  # seconds to end a command that took too long
_KEPT = 4096  # bytes kept of a stream's standard error, for messages
_STREAM = 30.0  # seconds for a command that is to be a stream to get ready


class SSHShell:
    """Commands and files on a host.

    A login shell may be anything, and may print anything before it runs a command (a chatty ~/.bashrc). So it is only
    asked to become /bin/sh, with a command that every shell understands; the script is sent over stdin, and its output
    is enclosed in random marks.

    Parameters
    ----------
    sessions
        Opens a session for each command.
    line
        Of the connection, for streams.
    where
        The host's name, for messages.
    """

    def __init__(self, sessions: Sessions, line: Line, where: str) -> None:
        self._sessions = sessions
        self._line = line
        self._where = where

    def __repr__(self) -> str:
        return f"<SSHShell {self._where}>"

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        """Run a POSIX sh command line and wait for it, whatever the user's login shell is.

        A nonzero status is not an error here. Processes that the command leaves running, and their output, are not
        waited for.

        Parameters
        ----------
        command
            What to run.
        input
            Its standard input.
        timeout
            Seconds it may take; None: no limit.

        Raises
        ------
        LinkError
            The connection broke, or the login shell did not start /bin/sh.
        TimeoutError
            It took longer than `timeout` seconds, and was sent SIGTERM.
        """
        mark = secrets.token_hex(12)
        script = (
            f"printf '<{mark}%d\\n' $$; printf '<{mark}\\n' >&2\n"
            f"(eval {shlex.quote(command)})\ns=$?\n"
            f"printf '>{mark}%d\\n' $s; printf '>{mark}0\\n' >&2\n"
        ).encode()
        session = _CommandSession(mark.encode())
        try:
            async with asyncio.timeout(timeout):
                channel = await self._sessions.open(session, _begin(script))
                try:
                    channel.write(script)
                    if input:
                        channel.write(input)
                    channel.write_eof()
                except OSError:
                    pass  # it has already ended; its output tells why
                try:
                    return await self._result(session)
                except (TimeoutError, asyncio.CancelledError):
                    await self._stop(session)
                    raise
                finally:
                    self._sessions.end(channel)
        except TimeoutError as error:
            raise TimeoutError(f"{self._where}: took more than {timeout:g} s: {_first_line(command)}") from error

    async def stream(self, command: str) -> SSHChannel:
        """Run a POSIX sh command line whose input and output are the stream.

        The command prints the line in ``$SKYWARD_READY`` once it is ready; any output before that is discarded.

        Raises
        ------
        LinkError
            The connection broke, or the command ended before it was ready; the text is from its standard error.
        """
        mark = secrets.token_hex(12)
        script = f"SKYWARD_READY={mark}; export SKYWARD_READY\n{command}\n".encode()
        channel = SSHChannel(self._line)
        session = _CommandStream(channel, f"{mark}\n".encode())
        ssh_channel = await self._sessions.open(session, _begin(script))
        try:
            ssh_channel.write(script)
            async with asyncio.timeout(_STREAM):
                await session.ready.wait()
            if not channel.is_open:
                raise LinkError(f"{self._where}: {session.said() or 'it ended at once'} (of: {_first_line(command)})")
        except TimeoutError as error:
            channel.close()
            raise LinkError(f"{self._where}: no answer within {_STREAM:g} s of: {_first_line(command)}") from error
        except BaseException:
            channel.close()
            raise
        return channel

    async def put(self, data: bytes, path: str) -> None:
        """Write a file, whole or not at all; folders must exist. A leading ``~/`` is the login's home.

        Raises
        ------
        LinkError
            The connection broke.
        OSError
            The file can't be written; the text says why.
        """
        target = '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)
        # Check the size, since a link that breaks looks like the end of the input.
        done = await self.run(
            f"f={target}; t=$f.{secrets.token_hex(6)}; umask 077\n"
            f'if cat >"$t" && [ "$(wc -c <"$t")" -eq {len(data)} ] && mv -f "$t" "$f"; then exit 0; fi\n'
            'rm -f "$t"; exit 1',
            input=data,
        )
        if done.status != 0:
            reason = done.stderr.strip() or "not all data arrived"
            raise OSError(f"{self._where}: can't write {path}: {reason}")

    async def _stop(self, session: _CommandSession) -> None:
        """End a command's processes. sshd passes on signals only for some users, so another command sends it."""
        if session.group is None:
            return
        killer = _CommandSession(b"")
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(_STOP):
                channel = await self._sessions.open(killer, f"exec /bin/sh -c 'kill -TERM -{session.group}'")
                await killer.ended.wait()
                self._sessions.end(channel)

    async def _result(self, session: _CommandSession) -> CommandOutput:
        await session.ended.wait()
        if session.status is not None:
            return CommandOutput(session.status, session.text(1), session.text(2))
        if session.started and session.exit_status is not None:  # the command killed the shell around it
            return CommandOutput(session.exit_status, session.text(1), session.text(2))
        if session.exit_status is None:
            raise LinkError(f"{self._where}: the SSH connection broke while a command ran") from session.error
        said = session.everything().strip()[-500:] or "it printed nothing"
        raise LinkError(f"{self._where}: the login shell did not start /bin/sh; does this account allow logins? {said}")


def _begin(script: bytes) -> str:
    """Return the command for the login shell."""
    # Read exactly the script: dash and others read ahead, and would take input that is meant for the script's commands.
    return f"exec /bin/sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"'"


def _first_line(command: str) -> str:
    line = command.strip().partition("\n")[0]
    return line if len(line) <= 120 else f"{line[:117]}..."


class _CommandSession(asyncssh.SSHClientSession[bytes]):
    """Collects what a command prints, until both its streams show the end mark."""

    def __init__(self, mark: bytes) -> None:
        self._begin = b"<" + mark
        self._end = b">" + mark
        self._streams = {1: bytearray(), 2: bytearray()}
        self._marks: dict[int, int] = {}  # stream -> where its end mark is
        self._shown_status = 0
        self.ended = asyncio.Event()
        self.status: int | None = None
        self.exit_status: int | None = None
        self.error: Exception | None = None

    @property
    def started(self) -> bool:
        """Whether /bin/sh took over."""
        return self._begin in self._streams[1]

    @property
    def group(self) -> int | None:
        """The command's process group, once known: sshd makes the login shell its leader."""
        _, _, rest = self._streams[1].partition(self._begin)
        number, newline, _ = rest.partition(b"\n")
        return int(number) if newline and number.isdigit() and int(number) > 1 else None

    def text(self, stream: int) -> str:
        """What the command itself printed."""
        data = self._streams[stream][: self._marks.get(stream)]
        return data[data.find(b"\n", data.find(self._begin)) + 1 :].decode(errors="replace")

    def everything(self) -> str:
        """Everything that arrived on both streams."""
        return b"\n".join(self._streams.values()).decode(errors="replace")

    def data_received(self, data: bytes, datatype: Any) -> None:
        """Bytes of stdout (no type) or stderr."""
        stream = 1 if datatype is None else 2
        buffer = self._streams[stream]
        seen = max(0, len(buffer) - len(self._end) - 8)
        buffer += data
        at = buffer.find(self._end, seen)
        line_end = buffer.find(b"\n", at) if at >= 0 else -1
        if line_end < 0 or stream in self._marks:
            return
        self._marks[stream] = at
        if stream == 1:
            self._shown_status = int(buffer[at + len(self._end) : line_end])
        if len(self._marks) == 2:
            self.status = self._shown_status
            self.ended.set()

    def exit_status_received(self, status: int) -> None:
        """Note the shell's exit status; the command's own comes with the mark."""
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """Note that the shell was killed, with a status as shells report it."""
        self.exit_status = 128 + int(getattr(signals, f"SIG{signal}", 0))

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed."""
        self.error = exc
        self.ended.set()


class _CommandStream(StreamSession, asyncssh.SSHClientSession[bytes]):
    """Passes on what a command prints after its mark."""

    def __init__(self, channel: SSHChannel, mark: bytes) -> None:
        super().__init__(channel)
        self._mark: bytes | None = mark
        self._before = bytearray()
        self._errors = bytearray()
        self.ready = asyncio.Event()

    def said(self) -> str:
        """What it wrote to its standard error, or printed instead of the mark."""
        return (bytes(self._errors).strip() or bytes(self._before).strip()).decode(errors="replace")[-500:]

    def data_received(self, data: bytes, datatype: Any) -> None:
        """Bytes of stdout (no type) or stderr."""
        if datatype is not None:
            self._errors = (self._errors + data)[-_KEPT:]
        elif self._mark is None:
            self._stream.feed_data(data)
        else:
            self._before += data
            at = self._before.find(self._mark)
            if at >= 0:
                rest = bytes(self._before[at + len(self._mark) :])
                self._mark = None
                if rest:
                    self._stream.feed_data(rest)
                self.ready.set()

    def eof_received(self) -> bool:
        """The command prints no more."""
        self.ready.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The session is closed."""
        super().connection_lost(exc)
        self.ready.set()
