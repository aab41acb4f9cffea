"""Commands on hosts that allow few at a time."""

from __future__ import annotations

import asyncio

import pytest

from skyward.core.errors import LinkError
from skyward.transport.ssh import SSHTransport
from tests.lab import Host, eventually
from tests.transport.test_ssh import endpoint, over

pytestmark = pytest.mark.lab


def connections(host: Host) -> list[str]:
    return [command for _, command in host.pids() if "sshd: root" in command]


@pytest.mark.parametrize("most", [1, 2])
def test_commands_share_the_sessions_that_a_host_allows(lab, fresh_host, most):
    host = fresh_host(sshd=(f"MaxSessions {most}",))

    async def main() -> None:
        link = await SSHTransport().connect(endpoint(lab, host), 10)
        for number in range(8):  # one after the other: one connection does
            assert (await link.shell.run(f"echo {number}")).stdout == f"{number}\n"
        assert len(connections(host)) == 1
        # At the same time: each waits for all the others, so there must be as many sessions.
        wait = "touch /tmp/here.$$; while [ $(ls /tmp/here.* | wc -l) -lt 3 ]; do sleep 0.05; done; echo met"
        done = await asyncio.gather(*(link.shell.run(wait, timeout=20) for _ in range(3)))
        assert [output.stdout for output in done] == ["met\n"] * 3
        await link.close()

    asyncio.run(main())
    eventually(lambda: not connections(host), what="the end of all connections")


def test_a_command_that_takes_too_long_is_ended_where_one_session_is_all(lab, fresh_host):
    host = fresh_host(sshd=("MaxSessions 1",))

    async def main() -> None:
        link = await SSHTransport().connect(endpoint(lab, host), 10)
        with pytest.raises(TimeoutError):
            await link.shell.run("sleep 71", timeout=0.5)
        eventually(lambda: not [line for _, line in host.pids() if "sleep 71" in line], what="the end of the command")
        assert (await link.shell.run("echo on")).stdout == "on\n"
        await link.close()

    asyncio.run(main())


def test_a_host_that_allows_no_session_is_said(lab, fresh_host):
    host = fresh_host(sshd=("MaxSessions 0",))
    with pytest.raises(LinkError, match="MaxSessions"):
        over(endpoint(lab, host), "true")
