"""Requests to nodes about files, each with one reply."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skyward.core.errors import NodeLost, ProtocolError
from skyward.core.nodes.session import Session
from skyward.core.protocol.messages import Message, Reply
from skyward.core.protocol.wire import Buffer, Filled

__all__ = ["RequestRefused", "Requests"]


class RequestRefused(Exception):
    """The node refused a request; the text is its reason."""


@dataclass(frozen=True, slots=True)
class _Asked:
    session: Session
    reply: asyncio.Future[Filled]


class Requests:
    """The requests of one pool that nodes have not answered. Belongs to the event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}

    def __repr__(self) -> str:
        return f"<Requests {len(self._asked)} open>"

    def ask(
        self, session: Session, request: Callable[[int], Message], buffers: Sequence[Buffer] = ()
    ) -> tuple[int, asyncio.Future[Filled]]:
        """Send a request.

        Parameters
        ----------
        session
            The node's.
        request
            Makes the message, given the request's number.
        buffers
            What the message carries.

        Returns
        -------
        tuple
            The number, and the reply's buffer: fails with `RequestRefused` or, if the node is lost, `NodeLost`.
        """
        number = next(self._numbers)
        reply: asyncio.Future[Filled] = asyncio.get_running_loop().create_future()
        self._asked[number] = _Asked(session, reply)
        session.send(request(number), buffers)
        return number, reply

    def received(self, session: Session, message: Reply, buffers: Sequence[Filled]) -> None:
        """Complete a request.

        Parameters
        ----------
        session
            Of the node that replies.
        message, buffers
            The reply.

        Raises
        ------
        ProtocolError
            Nothing was asked there.
        """
        asked = self._asked.get(message.request)
        if asked is None or asked.session is not session:
            raise ProtocolError("a reply to a request that was not made")
        del self._asked[message.request]
        if asked.reply.done():  # nobody is waiting any longer
            return
        if message.error is not None:
            asked.reply.set_exception(RequestRefused(message.error))
        else:
            asked.reply.set_result(buffers[0])

    def node_down(self, name: str, reason: str) -> None:
        """Fail the requests to a node that is gone for good."""
        for number in [number for number, asked in self._asked.items() if asked.session.node == name]:
            reply = self._asked.pop(number).reply
            if not reply.done():
                reply.set_exception(NodeLost(f"{name} was lost: {reason}"))
                reply.exception()  # it may be that nobody waits for it
