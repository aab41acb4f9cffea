"""Asks nodes from time to time which of their tasks they have, so that no task is lost without anybody noticing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from skyward.core.nodes.session import Session
from skyward.core.protocol import messages
from skyward.core.protocol.roll_call import RollCall

__all__ = ["RollCaller"]

_UNANSWERED = 12  # intervals for which a node may leave a question unanswered


@dataclass(slots=True, eq=False)
class _Roll:
    session: Session
    roll: RollCall = field(default_factory=RollCall)
    inquiry: int = 0  # number of the message with the last question


class RollCaller:
    """Asks the nodes of one pool. Belongs to the event loop.

    Parameters
    ----------
    interval
        Seconds between two questions.
    held
        Returns the tasks that a node should have, with their marks; see `RollCall.ask`.
    """

    def __init__(self, interval: float, held: Callable[[Session], dict[int, int]]) -> None:
        self._interval = interval
        self._held = held
        self._nodes: dict[str, _Roll] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<RollCaller of {len(self._nodes)} nodes>"

    def node_up(self, session: Session) -> None:
        """Ask this node, too, from now on."""
        self._nodes[session.node] = _Roll(session)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._ask)

    def node_down(self, name: str) -> None:
        """Stop asking a node."""
        self._nodes.pop(name, None)

    def lost(self, session: Session, missing: Sequence[int]) -> list[int]:
        """Return which of the tasks that a node is missing it should have; call this with each answer."""
        return self._nodes[session.node].roll.lost(missing, self._held(session))

    def _ask(self) -> None:
        for node in self._nodes.values():
            session = node.session
            if not session.linked:
                continue  # it can't answer; how long that may last is up to the session
            if asked := node.roll.ask(self._held(session)):
                node.inquiry = session.send(messages.Inquire(asked))
            elif node.roll.unanswered >= _UNANSWERED and session.acknowledged >= node.inquiry:
                session.abandon("it did not answer when asked which of its tasks it has")
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._ask) if self._nodes else None
