"""The way to one machine: links to it, and an agent on it where none runs yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from skyward.core import registry
from skyward.core.errors import (
    BootstrapFailed,
    HostKeyError,
    HostUnreachable,
    LinkError,
    LoginRefused,
    ProvisioningError,
    SkywardError,
)
from skyward.core.interfaces import Channel, Link, Shell, StreamShell, Transport
from skyward.core.nodes.agent_link import Stripes
from skyward.core.nodes.extra_links import ExtraLinks
from skyward.core.protocol.messages import HEARD_FILE
from skyward.core.spec import Image, Machine

__all__ = ["Connector"]

_CONNECT = 30.0  # seconds for one connection
_CONNECT_EXTRA = 5.0  # for a second one to the same machine: until then one channel has to carry all
_AGAIN = 1.0  # seconds between two tries to reach a machine that boots
_NOT_YET = (HostUnreachable, HostKeyError, LoginRefused)  # what a machine that boots may answer at first


class Connector:
    """Makes links to one machine, as often as needed, and channels to its agent.

    Parameters
    ----------
    machine
        Has an address.
    image, orphan_timeout
        The pool's, for an agent that must be brought up.
    patience
        Seconds for which the machine may still be booting: unreachable, or not yet the one that we expect.
    on_step, on_doubt
        Told what is being done, and when a link broke, so that its provider may know better.
    """

    def __init__(
        self,
        machine: Machine,
        image: Image,
        *,
        orphan_timeout: float,
        patience: float,
        on_step: Callable[[str], None],
        on_doubt: Callable[[], None],
    ) -> None:
        if machine.endpoint is None:
            raise ProvisioningError(f"{machine.name} ({machine.id}) has no address")
        self._endpoint = machine.endpoint
        self._image = image
        self._orphan_timeout = orphan_timeout
        self._patience = patience
        self._address = machine.agent
        self._secret = machine.secret
        self._host = {"python": machine.python, "prelude": machine.prelude}
        self._relay = ""
        self._relayed = False  # the machine lets nobody open a channel to the agent, but a command leads there
        self._on_step = on_step
        self._on_doubt = on_doubt
        self._transport: Transport = registry.load(registry.TRANSPORTS, self._endpoint.transport)()
        self._link: Link | None = None
        self._extra_links = ExtraLinks(lambda: self._transport.connect(self._endpoint, _CONNECT_EXTRA))
        self._used = False

    async def prepare(self) -> bytes:
        """Connect, and bring up an agent where none runs yet; the secret to prove to it."""
        self._on_step(f"connecting to {self._endpoint}")
        self._link = await self._reach()
        if self._address is None:
            if self._link.shell is None:
                raise ProvisioningError(f"{self._endpoint} has neither an agent nor a shell to start one")
            from skyward.core.nodes.bootstrap import bootstrap  # noqa: PLC0415 - nodes on this machine need none

            awake = asyncio.create_task(self._keep_awake(self._link.shell))
            try:
                agent = await bootstrap(
                    self._link.shell,
                    self._image,
                    orphan_timeout=self._orphan_timeout,
                    on_step=self._on_step,
                    **self._host,
                )
            except (BootstrapFailed, LinkError, TimeoutError) as error:
                kind = type(error) if isinstance(error, SkywardError) else BootstrapFailed
                raise kind(f"{self._endpoint}: {error}") from error
            finally:
                awake.cancel()
            self._address, self._secret, self._relay = agent.address, agent.secret, agent.relay
        return self._secret

    async def _reach(self) -> Link:
        """The first link; a machine that boots is asked again and again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience
        while True:
            try:
                limit = min(_CONNECT, max(_AGAIN, end - loop.time())) if self._patience else _CONNECT
                return await self._transport.connect(self._endpoint, limit)
            except _NOT_YET as error:
                if loop.time() + _AGAIN > end:
                    raise
                # Another host key is met with nothing but another try: nothing was sent to that host.
                self._on_step(f"waiting for {self._endpoint}: {type(error).__name__}")
                await asyncio.sleep(_AGAIN)

    async def _keep_awake(self, shell: Shell) -> None:
        """While no agent runs yet: tell the machine's watchdog that its owner is there."""
        if not self._patience:
            return
        while True:
            with contextlib.suppress(LinkError, TimeoutError):
                await shell.run(f"touch -c {HEARD_FILE}", timeout=_CONNECT)
            await asyncio.sleep(min(30.0, self._orphan_timeout / 4))

    async def open(self) -> Channel:
        """A channel to the agent: the first over the link that is there, each later one over a new link."""
        assert self._address is not None
        if self._used:
            self._on_doubt()
            await self.close()
        if self._link is None:
            self._link = await self._transport.connect(self._endpoint, _CONNECT)
        self._used = True
        return await self._enter(self._link)

    async def _enter(self, link: Link) -> Channel:
        """A channel to the agent over this link."""
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
                raise LinkError(f"{refusal}; nor did a command there reach it: {error}") from refusal
            self._relayed = True
            self._on_step(f"{self._endpoint} lets nobody open a channel to the agent; a command there leads to it")
            return channel
        assert isinstance(link.shell, StreamShell)
        return await link.shell.stream(self._relay)

    @property
    def stripes(self) -> Stripes | None:
        """How a session gets more channels, which delay nothing on the first; None where that is no faster."""
        return Stripes(self._open_stripe) if self._transport.striped else None

    async def _open_stripe(self) -> Channel:
        if self._link is None or self._address is None:
            raise LinkError(f"{self._endpoint}: there is no link")
        return await self._extra_links.open_channel(self._link, self._enter)

    async def close(self) -> None:
        """End all links. That goes on where the caller is cancelled meanwhile, as it is when the pool ends."""
        link, self._link = self._link, None
        ending = [self._extra_links.close(), *([] if link is None else [link.close()])]
        await asyncio.gather(*map(asyncio.shield, ending))
