"""Reaches machines over SSH, using asyncssh: a shell, and streams to the agent's Unix socket.

Logging in is in ssh_login.py (configuration: ssh_config.py, host keys: ssh_known.py, our keys: ssh_keys.py), sharing
connections in ssh_routes.py, and what runs over them in ssh_stream.py and ssh_shell.py. This module joins them. Only
the registry imports it, since asyncssh takes a while to import.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import asyncssh

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.spec import Endpoint
from skyward.transport.ssh_routes import LoginProgress, Route, Routes
from skyward.transport.ssh_sessions import Sessions
from skyward.transport.ssh_shell import SSHShell
from skyward.transport.ssh_stream import PACKET, WINDOW, SSHChannel

__all__ = ["SSHChannel", "SSHLink", "SSHShell", "SSHTransport"]


class SSHTransport:
    """Transport "ssh". `Endpoint.options` may hold, all optional:

    known_hosts
        Path of a known_hosts file, or a list of lines in its format. Default: as configured.
    host_key
        One public key line; the host must present this key, and known_hosts is not consulted.
    keys
        Paths of private keys, tried first; those of ssh-agent, if there is one, are tried after them.
    jump
        Hosts to go through, as for ``ssh -J``; "none" for none, whatever the configuration says.
    config
        Paths of configuration files instead of ~/.ssh/config and /etc/ssh/ssh_config.
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
            As their names say; never any other type.
        """
        progress = LoginProgress(str(endpoint))
        try:
            async with asyncio.timeout(timeout):
                return SSHLink(endpoint, await Routes.here().log_in(endpoint, progress))
        except TimeoutError as error:
            way = f" (on the way to {endpoint})" if progress.is_jump else ""
            raise HostUnreachable(
                f"{progress.at}{way} did not answer within {timeout:g} s. Is the address right, is the host up, and "
                "is no firewall in the way?"
            ) from error


class SSHLink:
    """A connection to a host, possibly through jump hosts."""

    def __init__(self, endpoint: Endpoint, route: Route) -> None:
        self.endpoint = endpoint
        self._route = route
        self._connection = route.connection
        self._line = route.line
        self._sessions = Sessions(str(endpoint), route, lambda: Routes.here().log_in(endpoint, LoginProgress("")))
        self._shell = SSHShell(self._sessions, self._line, str(endpoint))

    def __repr__(self) -> str:
        state = "closed" if self._connection.is_closed() else "open"
        return f"<SSHLink {self.endpoint}: {state}>"

    @property
    def shell(self) -> SSHShell:
        """Commands on the host."""
        return self._shell

    async def open_channel(self, address: str) -> SSHChannel:
        """Open a stream to a listener there: the path of a Unix socket, or ``host:port``.

        Raises
        ------
        LinkError
            Nothing listens there, the host does not allow it, or the connection broke.
        """
        channel = SSHChannel(self._line)
        sizes: Any = {"window": WINDOW, "max_pktsize": PACKET}
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
        """Close the connection and all its channels. May be repeated."""
        try:
            await self._sessions.close()
        finally:
            await self._route.close()


def _why(error: asyncssh.ChannelOpenError) -> str:
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return f"{error.reason} (its sshd_config must allow AllowStreamLocalForwarding and AllowTcpForwarding)"
    return error.reason or "nothing listens there"
