"""Machines over SSH, by asyncssh: a shell, and streams to the agent's Unix socket.

How one logs in (configuration, keys, jump hosts, host keys) is in ssh_login.py. This file has what runs over the
connection. It is imported by the registry only, since asyncssh takes a while to import.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import signal as signals
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import asyncssh

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Output
from skyward.core.spec import Endpoint
from skyward.transport.ssh_login import log_in

__all__ = ["SSHChannel", "SSHLink", "SSHShell", "SSHTransport"]

_WINDOW = 8 * 2**20  # bytes that the host may send ahead: 160 MB/s over a round trip of 50 ms
_PACKET = 128 * 2**10
_UNREAD = 4 * 2**20  # bytes waiting for a reader after which the host is slowed down
_UNSENT = 256 * 2**10  # bytes waiting for the host's window after which a channel is congested
_QUEUED = 512 * 2**10  # bytes that the kernel may hold unsent: what a small message waits for, 10 ms at 50 MB/s
_FEW = 64 * 2**10  # buffers up to this sum are joined: one packet is cheaper than several
_IGNORE = 2  # the number of SSH_MSG_IGNORE (RFC 4250)
_FED = 64 * 2**10  # bytes that asyncssh is given at a time: two of sshd's packets
_GOODBYE = 2.0  # seconds that an orderly end may take; a dead line gives no answer


class SSHTransport:
    """Transport "ssh". What `Endpoint.options` may hold, all optional:

    known_hosts
        Path of a known_hosts file, or a list of lines in its format. Default: what the configuration says.
    host_key
        One public key line; the host must show this key, known_hosts is not asked.
    keys
        Paths of private keys, tried first. ssh-agent, where there is one, is asked besides.
    jump
        Hosts to go through, as ``ssh -J`` takes them; "none" for none whatever the configuration says.
    config
        Paths of configuration files instead of ~/.ssh/config.
    agent_forwarding
        Whether commands on the host may use our ssh-agent.
    """

    name: ClassVar[str] = "ssh"
    striped: ClassVar[bool] = True

    async def connect(self, endpoint: Endpoint, timeout: float) -> SSHLink:
        """Connect and authenticate within `timeout` seconds.

        Raises
        ------
        HostUnreachable, HostKeyError, LoginRefused
            As their names say; never another type.
        """
        try:
            async with asyncio.timeout(timeout):
                return SSHLink(endpoint, await log_in(endpoint))
        except TimeoutError as error:
            raise HostUnreachable(
                f"{endpoint} did not answer within {timeout:g} s. Is the address right, is the host up, and does no "
                "firewall stand between?"
            ) from error


class SSHLink:
    """A connection to a host, maybe through others."""

    def __init__(self, endpoint: Endpoint, chain: Sequence[asyncssh.SSHClientConnection]) -> None:
        self.endpoint = endpoint
        self._chain = list(chain)
        self._connection = chain[-1]
        self._line = _Line(self._connection)
        self._shell = SSHShell(self._connection, str(endpoint))

    def __repr__(self) -> str:
        state = "closed" if self._connection.is_closed() else "open"
        return f"<SSHLink {self.endpoint}: {state}>"

    @property
    def shell(self) -> SSHShell:
        """Commands on the host."""
        return self._shell

    async def open_channel(self, address: str) -> SSHChannel:
        """A stream to a listener there: the path of a Unix socket, or ``host:port``.

        Raises
        ------
        LinkError
            Nobody listens, the host does not allow it, or the connection broke.
        """
        channel = SSHChannel(self._line)
        sizes: Any = {"window": _WINDOW, "max_pktsize": _PACKET}
        try:
            if address.startswith("/"):
                await self._connection.create_unix_connection(lambda: channel.unix, address, encoding=None, **sizes)
            else:
                host, _, port = address.rpartition(":")
                await self._connection.create_connection(lambda: channel.tcp, host.strip("[]"), int(port), **sizes)
        except asyncssh.ChannelOpenError as error:
            raise LinkError(f"{self.endpoint}: can't open {address}: {_why(error)}") from error
        except (asyncssh.Error, OSError) as error:
            raise LinkError(f"{self.endpoint}: the SSH connection broke: {error}") from error
        return channel

    async def close(self) -> None:
        """End the connection and all its channels. May be repeated."""
        for connection in reversed(self._chain):
            connection.close()
        try:
            async with asyncio.timeout(_GOODBYE):
                for connection in reversed(self._chain):
                    await connection.wait_closed()
        except BaseException as error:  # cancelled too: nothing may be left open
            for connection in reversed(self._chain):
                connection.abort()
            if not isinstance(error, TimeoutError):
                raise


def _why(error: asyncssh.ChannelOpenError) -> str:
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return f"{error.reason} (its sshd_config must allow AllowStreamLocalForwarding and AllowTcpForwarding)"
    return error.reason or "nobody listens there"


_Stream: TypeAlias = "asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes]"


# --- streams --------------------------------------------------------------------------------------------------------


def _make_lean(connection: asyncssh.SSHClientConnection) -> None:
    """Spare asyncssh what it need not do for each packet of a large transfer."""
    send, receive = connection.send_packet, connection.data_received

    def send_packet(kind: int, *parts: bytes, handler: Any = None) -> None:
        # An empty message ahead of each packet helps ciphers whose next block can be foreseen (CBC, RFC 4251 9.3.1).
        if kind != _IGNORE:
            send(kind, *parts, handler=handler)

    def data_received(data: bytes, datatype: Any = None) -> None:
        # With each packet that it takes, it copies all that is behind it twice.
        for start in range(0, len(data), _FED):
            receive(data[start : start + _FED], datatype)

    if "gcm" in str(connection.get_extra_info("send_cipher")):
        connection.send_packet = send_packet  # type: ignore[assignment]
    connection.data_received = data_received  # type: ignore[method-assign]


class _Line:
    """What all channels of a connection share: when it takes no more, each of them is congested.

    asyncssh queues without a bound what the channels' windows allow; several would fill seconds of a slow line.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.full = False
        self.channels: weakref.WeakSet[SSHChannel] = weakref.WeakSet()
        sock = connection.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError, AttributeError):  # a tunnel through another connection has no socket
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _QUEUED)
        _make_lean(connection)
        # asyncio's transport calls these of its protocol, and asyncssh does nothing in them.
        connection.pause_writing = self._pause  # type: ignore[method-assign]
        connection.resume_writing = self._resume  # type: ignore[method-assign]

    def _pause(self) -> None:
        self.full = True

    def _resume(self) -> None:
        self.full = False
        for channel in list(self.channels):
            channel.relieved()


class SSHChannel:
    """A stream over a connection. Bytes that arrive wait in a list until they are read."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        line.channels.add(self)
        self._channel: _Stream | None = None
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._slowed = False
        self._ended = False
        self._congested = False
        self._reader: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        state = "ended" if self._ended else "congested" if self._congested else "open"
        return f"<SSHChannel {state}, {self._unread_size} bytes unread>"

    @property
    def unix(self) -> asyncssh.SSHUNIXSession[bytes]:
        """The asyncssh session of a stream to a Unix socket."""
        return _UnixSession(self)

    @property
    def tcp(self) -> asyncssh.SSHTCPSession[bytes]:
        """The asyncssh session of a stream to a port."""
        return _TCPSession(self)

    async def read(self) -> bytes:
        """The next bytes, as many as there are; ``b""`` at the end of the stream, also after an error of the link."""
        if not self._unread and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_size = 0
        if self._slowed and self._channel is not None:
            self._slowed = False
            self._channel.resume_reading()
        return data

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Queue bytes in order. Never blocks. After the stream ended it does nothing."""
        channel = self._channel
        if self._ended or channel is None or channel.is_closing():
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(views) > 1 and sum(view.nbytes for view in views) <= _FEW:
            channel.write(b"".join(views))
            return
        for view in views:
            channel.write(view)  # type: ignore[arg-type,unused-ignore]  # it copies any bytes-like object

    async def drain(self) -> None:
        """Wait until little enough is queued that writing more makes sense, or the stream has ended."""
        while self.congested:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            await waiter

    @property
    def congested(self) -> bool:
        """Whether `drain` would wait."""
        return self._congested or (self._line.full and not self._ended)

    def close(self) -> None:
        """End the stream; what was queued is still sent where the link allows. May be repeated."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.close()
        self.ended()

    # What asyncssh tells

    def opened(self, channel: _Stream) -> None:
        """The stream stands."""
        self._channel = channel
        channel.set_write_buffer_limits(high=_UNSENT)

    def received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._ended:
            return
        self._unread.append(data)
        self._unread_size += len(data)
        if self._unread_size > _UNREAD and not self._slowed and self._channel is not None:
            self._slowed = True
            self._channel.pause_reading()
        self._wake_reader()

    def congest(self, congested: bool) -> None:
        """The queue grew too long, or is short again."""
        self._congested = congested and not self._ended
        self.relieved()

    def relieved(self) -> None:
        """Perhaps not congested any more."""
        if not self.congested:
            drainers, self._drainers = self._drainers, []
            for waiter in drainers:
                if not waiter.done():
                    waiter.set_result(None)

    def ended(self) -> None:
        """The other side closed the stream, we did, or the connection is gone."""
        self._ended = True
        self.congest(False)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Session:
    """Passes on what asyncssh tells a session."""

    def __init__(self, stream: SSHChannel) -> None:
        self._stream = stream

    def connection_made(self, chan: Any) -> None:
        self._stream.opened(chan)

    def data_received(self, data: bytes, datatype: Any) -> None:
        self._stream.received(data)

    def eof_received(self) -> bool:
        self._stream.close()  # half a stream is of no use here
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.ended()

    def pause_writing(self) -> None:
        self._stream.congest(True)

    def resume_writing(self) -> None:
        self._stream.congest(False)


class _UnixSession(_Session, asyncssh.SSHUNIXSession[bytes]):
    pass


class _TCPSession(_Session, asyncssh.SSHTCPSession[bytes]):
    pass


# --- commands -------------------------------------------------------------------------------------------------------


class SSHShell:
    """Commands and files on a host.

    A login shell may be anything and may print anything before it obeys (a chatty ~/.bashrc). So all it is asked for
    is to become /bin/sh, in words that every shell understands; the script comes over stdin, and its output stands
    between random marks.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, where: str) -> None:
        self._connection = connection
        self._where = where

    def __repr__(self) -> str:
        return f"<SSHShell {self._where}>"

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Output:
        """Run a POSIX sh command line and wait for it, whatever the user's login shell is.

        A status other than 0 is no error here. Processes that the command leaves behind are not waited for, nor is
        what they print.

        Raises
        ------
        LinkError
            The connection broke, or the login shell did not start /bin/sh.
        TimeoutError
            It took longer than `timeout` seconds; it was sent SIGTERM.
        """
        mark = secrets.token_hex(12)
        script = (
            f"printf '<{mark}%d\\n' $$; printf '<{mark}\\n' >&2\n"
            f"(eval {shlex.quote(command)})\ns=$?\n"
            f"printf '>{mark}%d\\n' $s; printf '>{mark}0\\n' >&2\n"
        ).encode()
        # The shell reads exactly the script: dash and others read ahead, so it can't share stdin with its commands.
        start = f"exec /bin/sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"'"
        session = _CommandSession(mark.encode())
        try:
            async with asyncio.timeout(timeout):
                channel = await self._open(session, start)
                try:
                    channel.write(script)
                    if input:
                        channel.write(input)
                    channel.write_eof()
                except OSError:
                    pass  # it ended already; what it printed tells why
                try:
                    return await self._result(session)
                except (TimeoutError, asyncio.CancelledError):
                    await self._stop(session)
                    raise
                finally:
                    channel.close()
        except TimeoutError as error:
            raise TimeoutError(f"{self._where}: no end within {timeout:g} s of: {_first_line(command)}") from error

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
        # A link that breaks looks like the end of the input, hence the size.
        done = await self.run(
            f"f={target}; t=$f.{secrets.token_hex(6)}; umask 077\n"
            f'if cat >"$t" && [ "$(wc -c <"$t")" -eq {len(data)} ] && mv -f "$t" "$f"; then exit 0; fi\n'
            'rm -f "$t"; exit 1',
            input=data,
        )
        if done.status != 0:
            reason = done.stderr.strip() or "the data did not arrive whole"
            raise OSError(f"{self._where}: can't write {path}: {reason}")

    async def _open(self, session: _CommandSession, command: str) -> asyncssh.SSHClientChannel[bytes]:
        try:
            channel, _ = await self._connection.create_session(
                lambda: session, command, encoding=None, request_pty=False, window=_WINDOW, max_pktsize=_PACKET
            )
        except (asyncssh.Error, OSError) as error:
            raise LinkError(f"{self._where}: can't run a command: {error!s}") from error
        return channel

    async def _stop(self, session: _CommandSession) -> None:
        """End a command's processes. sshd passes on signals only for some users, so a second command sends it."""
        if session.group is None:
            return
        killer = _CommandSession(b"")
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                channel = await self._open(killer, f"exec /bin/sh -c 'kill -TERM -{session.group}'")
                await killer.ended.wait()
                channel.close()

    async def _result(self, session: _CommandSession) -> Output:
        await session.ended.wait()
        if session.status is not None:
            return Output(session.status, session.text(1), session.text(2))
        if session.started and session.exit_status is not None:  # the command killed the shell around it
            return Output(session.exit_status, session.text(1), session.text(2))
        if session.exit_status is None:
            raise LinkError(f"{self._where}: the SSH connection broke while a command ran") from session.error
        said = session.everything().strip()[-500:] or "it said nothing"
        raise LinkError(f"{self._where}: the login shell did not start /bin/sh; is this account for logins? {said}")


def _first_line(command: str) -> str:
    line = command.strip().partition("\n")[0]
    return line if len(line) <= 120 else f"{line[:117]}..."


class _CommandSession(asyncssh.SSHClientSession[bytes]):
    """Gathers what a command prints, until both its streams show the end mark."""

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
        """The command's process group, once it is known: sshd makes the login shell its leader."""
        _, _, rest = self._streams[1].partition(self._begin)
        number, newline, _ = rest.partition(b"\n")
        return int(number) if newline and number.isdigit() and int(number) > 1 else None

    def text(self, stream: int) -> str:
        """What the command itself printed."""
        data = self._streams[stream][: self._marks.get(stream)]
        return data[data.find(b"\n", data.find(self._begin)) + 1 :].decode(errors="replace")

    def everything(self) -> str:
        """All that arrived on both streams."""
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
        """The shell's exit status; the command's own comes with the mark."""
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """The shell was killed; counted as shells do."""
        self.exit_status = 128 + int(getattr(signals, f"SIG{signal}", 0))

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed."""
        self.error = exc
        self.ended.set()
