"""Connects to one machine, and starts an agent there if none is running yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from skyward.core import registry
from skyward.core.errors import (
    BootstrapFailed,
    HostKeyError,
    HostUnreachable,
    LinkError,
    LoginRefused,
    PackagesFailed,
    ProvisioningError,
    SkywardError,
)
from skyward.core.image import Image
from skyward.core.interfaces import Channel, Link, Shell, StreamShell, Transport
from skyward.core.nodes.agent_link import Stripes
from skyward.core.nodes.extra_links import ExtraLinks
from skyward.core.packages.lists import PackageLists
from skyward.core.protocol.messages import HEARD_FILE
from skyward.core.spec import Machine

if TYPE_CHECKING:
    from skyward.core.nodes.bootstrap import AgentAddress

__all__ = ["Connector"]

_CONNECT = 30.0  # seconds for one connection
_CONNECT_EXTRA = 5.0  # for an extra one to the same machine; until then one channel carries everything
_RETRY = 1.0  # seconds between two attempts to reach a machine that is booting
_NOT_YET = (HostUnreachable, HostKeyError, LoginRefused)  # how a machine that is booting may answer at first


class Connector:
    """Makes links to one machine, as often as needed, and opens channels to its agent.

    Parameters
    ----------
    machine
        The machine, which must have an address.
    image, packages, orphan_timeout
        The pool's settings for an agent that must be started.
    patience
        Seconds for which the machine may still be booting: unreachable, or not yet showing the expected host key.
    on_step
        Called with a few words on what is being done.
    on_warning
        Called with what the user has to know, as something does not work as intended.
    on_doubt
        Called when a link broke, so that the provider can be asked about the machine.

    Raises
    ------
    ProvisioningError
        The machine has no address.
    """

    def __init__(
        self,
        machine: Machine,
        image: Image,
        packages: PackageLists | None = None,
        *,
        orphan_timeout: float,
        patience: float,
        on_step: Callable[[str], None],
        on_warning: Callable[[str], None],
        on_doubt: Callable[[], None],
    ) -> None:
        if machine.endpoint is None:
            raise ProvisioningError(f"{machine.name} ({machine.id}) has no address")
        self._endpoint = machine.endpoint
        self._image = image
        self._packages = packages
        self._orphan_timeout = orphan_timeout
        self._patience = patience
        self._address = machine.agent
        self._secret = machine.secret
        self._host = {"python": machine.python, "prelude": machine.prelude}
        self._relay = ""
        self._supply: Callable[[Shell, PackageLists], Awaitable[None]] | None = None
        self._end: Callable[[Shell], Awaitable[None]] | None = None  # for the agent that was started here
        self._relayed = False  # whether channels must go through a command, since the machine does not allow others
        self._on_step, self._on_warning = on_step, on_warning
        self._on_doubt = on_doubt
        self._transport: Transport = registry.load(registry.TRANSPORTS, self._endpoint.transport)()
        self._link: Link | None = None
        self._extra_links = ExtraLinks(lambda: self._transport.connect(self._endpoint, _CONNECT_EXTRA))
        self._used = False

    async def prepare(self) -> bytes:
        """Connect, and start an agent if none is running yet. Returns the secret to prove to it.

        Raises
        ------
        ProvisioningError
            The machine can't be reached, or an agent can't be started there.
        """
        self._on_step(f"connecting to {self._endpoint}")
        self._link = await self._reach()
        if self._address is None:
            if self._link.shell is None:
                raise ProvisioningError(f"{self._endpoint} has neither an agent nor a shell to start one")
            awake = asyncio.create_task(self._keep_awake(self._link.shell))
            try:
                agent = await self._bootstrap(self._link.shell)
            except (BootstrapFailed, LinkError, TimeoutError) as error:
                kind = type(error) if isinstance(error, SkywardError) else BootstrapFailed
                failure = kind(f"{self._endpoint}: {error}")
                if isinstance(failure, PackagesFailed) and isinstance(error, PackagesFailed):
                    failure.unavailable = error.unavailable
                raise failure from error
            finally:
                awake.cancel()
            self._address, self._secret, self._relay = agent.address, agent.secret, agent.relay
            self._supply, self._end = agent.supply, agent.end
        return self._secret

    async def _bootstrap(self, shell: Shell) -> AgentAddress:
        from skyward.core.nodes.bootstrap import bootstrap  # noqa: PLC0415 - nodes on this machine need none

        async def start(packages: PackageLists | None) -> AgentAddress:
            return await bootstrap(
                shell,
                self._image,
                packages,
                orphan_timeout=self._orphan_timeout,
                on_step=self._on_step,
                **self._host,
            )

        packages = self._packages
        while True:
            try:
                return await start(packages)
            except PackagesFailed as error:
                if packages is None or packages.named is None:
                    raise
                # What only seems necessary must not keep the pool from starting: perhaps just the driver uses it.
                if (fewer := packages.without(error.unavailable)) is not None:
                    self._on_warning(
                        f"{self._endpoint} gets no {', '.join(error.unavailable)}: its package index can't serve that, "
                        "and it can't be sent from here. Tasks that import it will fail there"
                    )
                    packages = fewer
                else:
                    self._on_warning(
                        f"{self._endpoint} gets only the packages that sky.Image(pip=, requirements=) and plugins "
                        f"name, not what the program imports, because {error}"
                    )
                    packages = packages.named

    @property
    def supply(self) -> Callable[[PackageLists], Awaitable[None]] | None:
        """Installs further packages for the agent's slots; None for an agent that was not started here."""
        return None if self._supply is None else self._install

    async def _install(self, packages: PackageLists) -> None:
        if self._link is None or self._link.shell is None or self._supply is None:
            raise LinkError(f"{self._endpoint}: not connected")
        try:
            await self._supply(self._link.shell, packages)
        except TimeoutError as error:
            raise BootstrapFailed(f"{self._endpoint}: {error}") from error

    async def _reach(self) -> Link:
        """Make the first link, retrying while the machine may still be booting."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience
        while True:
            try:
                limit = min(_CONNECT, max(_RETRY, end - loop.time())) if self._patience else _CONNECT
                return await self._transport.connect(self._endpoint, limit)
            except _NOT_YET as error:
                if loop.time() + _RETRY > end:
                    raise
                # After an unexpected host key, too, we only retry: nothing was sent to that host.
                self._on_step(f"waiting for {self._endpoint}: {type(error).__name__}")
                await asyncio.sleep(_RETRY)

    async def _keep_awake(self, shell: Shell) -> None:
        """Keep the machine's watchdog from ending it while no agent is running yet."""
        if not self._patience:
            return
        while True:
            with contextlib.suppress(LinkError, TimeoutError):
                await shell.run(f"touch -c {HEARD_FILE}", timeout=_CONNECT)
            await asyncio.sleep(min(30.0, self._orphan_timeout / 4))

    async def open(self) -> Channel:
        """Open a channel to the agent: the first over the existing link, each later one over a new link."""
        assert self._address is not None
        if self._used:
            self._on_doubt()
            await self.close()
        if self._link is None:
            self._link = await self._transport.connect(self._endpoint, _CONNECT)
        self._used = True
        return await self._enter(self._link)

    async def _enter(self, link: Link) -> Channel:
        """Open a channel to the agent over this link, through a command if the machine allows nothing else."""
        assert self._address is not None
        if not self._relayed:
            try:
                return await link.open_channel(self._address)
            except LinkError as error:
                if not self._relay or not isinstance(link.shell, StreamShell):
                    raise
                refusal = error
            try:
                channel = await link.shell.stream(self._relay)
            except LinkError as error:
                raise LinkError(f"{refusal}; a command there could not reach it either: {error}") from refusal
            self._relayed = True
            self._on_step(f"{self._endpoint} does not allow channels to the agent; using a command there instead")
            return channel
        assert isinstance(link.shell, StreamShell)
        return await link.shell.stream(self._relay)

    @property
    def stripes(self) -> Stripes | None:
        """How a session opens more channels, which do not delay the first; None if that would not be faster."""
        # Third parties' transports may be older than the attribute; it is too late here to refuse one.
        return Stripes(self._open_stripe) if getattr(self._transport, "striped", False) else None

    async def _open_stripe(self) -> Channel:
        if self._link is None or self._address is None:
            raise LinkError(f"{self._endpoint}: not connected")
        return await self._extra_links.open_channel(self._link, self._enter)

    async def end_agent(self) -> None:
        """End an agent that was started here and never greeted; completes as `close` does."""
        if self._end is not None and self._link is not None and self._link.shell is not None:
            await asyncio.shield(self._end(self._link.shell))

    async def close(self) -> None:
        """Close all links; this completes even if the caller is cancelled meanwhile, as happens when the pool ends."""
        link, self._link = self._link, None
        ending = [self._extra_links.close(), *([] if link is None else [link.close()])]
        await asyncio.gather(*map(asyncio.shield, ending))
