"""Commands run whatever the login shell prints, and their errors say what happened.

The host is a server of asyncssh in this process that runs commands on this machine; test_ssh.py has real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput
from skyward.transport.ssh_routes import Route
from skyward.transport.ssh_sessions import Sessions
from skyward.transport.ssh_shell import SSHShell

NOISE = "echo hello; printf '<noise' >&2; "


class Open(asyncssh.SSHServer):
    """Lets everybody in."""

    def begin_auth(self, username: str) -> bool:
        return False


async def run_here(login: str, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run a command on this machine as sshd does, with a login shell that does something before."""

    async def pump(reader: Any, writer: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever reads there has ended
            while data := await reader.read(65536):
                writer.write(data)

    async def pump_input() -> None:
        await pump(process.stdin, child.stdin)
        child.stdin.close()

    pipe = asyncio.subprocess.PIPE
    child: Any = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"{login}{process.command}", stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    giving = asyncio.ensure_future(pump_input())
    await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
    status = await child.wait()
    giving.cancel()
    child.stdin.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await child.stdin.wait_closed()
    process.exit(status)


@contextlib.asynccontextmanager
async def shell(login: str = NOISE) -> AsyncIterator[SSHShell]:
    async def no_other() -> Route:
        raise AssertionError("one connection is enough")

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=Open,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=partial(run_here, login),
        encoding=None,
    )
    arguments = {"known_hosts": None, "config": [], "agent_path": None, "username": "ann", "client_keys": None}
    try:
        async with (
            asyncio.timeout(60),
            asyncssh.connect("127.0.0.1", server.get_port(), **arguments) as connection,
        ):
            route = Route(connection)
            yield SSHShell(Sessions("the host", route, no_other), route.line, "the host")
    finally:
        server.close()


def test_a_command_has_its_own_output_input_and_status() -> None:
    async def main() -> None:
        async with shell() as it:
            command = "cat; echo error >&2; printf '%s' \"it's\"; exit 5"
            done = await it.run(command, input=b"input\n")
            assert done == CommandOutput(5, "input\nit's", "error\n")

    asyncio.run(main())


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_ended() -> None:
    async def main() -> None:
        async with shell() as it:
            with pytest.raises(TimeoutError, match="the host: took more than 1 s: sleep 600"):
                await it.run("sleep 600", timeout=1.0)

    asyncio.run(main())


def test_a_login_shell_that_runs_nothing_is_an_error() -> None:
    async def main() -> None:
        async with shell(login="echo This account is not available.; exit 1; ") as it:
            with pytest.raises(LinkError, match=r"did not start /bin/sh.*This account is not available"):
                await it.run("true")

    asyncio.run(main())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with shell() as it:
            await it.put(b"\0 data", str(tmp_path / "it's a file"))
            with pytest.raises(OSError, match="can't write"):
                await it.put(b"data", str(tmp_path / "no folder" / "file"))

    asyncio.run(main())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("it's a file", b"\0 data")]


def test_a_command_can_be_a_stream_once_it_is_ready() -> None:
    async def main() -> None:
        async with shell() as it:
            stream = await it.stream('echo not yet; echo "$SKYWARD_READY"; exec cat')
            stream.write([b"there ", b"and back"])
            assert await stream.read() == b"there and back"
            stream.close()
            with pytest.raises(LinkError, match="no such luck"):
                await it.stream("echo no such luck >&2; exit 1")

    asyncio.run(main())
