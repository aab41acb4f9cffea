"""Which message may be sent when: the states of the two ends of a link, and the table of all legal moves.

Everything about the order of messages is here; how they look on the stream is in wire.py. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import (
    Ack,
    Attach,
    Began,
    Blob,
    Build,
    Bye,
    Cancel,
    Code,
    Done,
    Failed,
    Fetch,
    Find,
    Flush,
    Forget,
    Gpus,
    Hello,
    Inquire,
    Kept,
    Listening,
    Load,
    Missing,
    Mount,
    Output,
    Peers,
    Ping,
    Pong,
    Proof,
    Reached,
    Read,
    Ready,
    Recall,
    Renew,
    Reply,
    Returned,
    Run,
    Setup,
    Share,
    StreamClose,
    StreamData,
    StreamOpen,
    Welcome,
)

__all__ = ["REQUIRES", "TALK", "TRANSITIONS", "Role", "State", "next_state"]


class Role(enum.Enum):
    """Which end of the conversation: `OWNER` gives out tasks, `AGENT` has them run.

    An agent and one of its slots speak the same protocol; there, the agent is the owner.
    """

    OWNER = "owner"
    AGENT = "agent"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code, and every look-up uses it

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.AGENT if self is Role.OWNER else Role.OWNER


class State(enum.Enum):
    """How far one end has come."""

    START = "start"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"

    __hash__ = object.__hash__


_ANY = (Ping, Pong, Ack, Bye, StreamData, StreamClose)
_FILES = (Mount, Build, Find, Read, Attach, Renew, Flush)
_OWNER = (Setup, Run, Code, Cancel, Recall, Inquire, Blob, Fetch, Share, Forget, Peers, *_FILES)
_REPORTS = (Ready, Listening, Reached, Gpus, Load)
_AGENT = (Began, Done, Failed, Returned, Missing, Output, StreamOpen, Kept, Reply, *_REPORTS)


def _open(kinds: Iterable[type[Any]]) -> dict[type[Any], State]:
    return {kind: State.CLOSED if kind is Bye else State.OPEN for kind in kinds}


TRANSITIONS: dict[Role, dict[State, dict[type[Any], State]]] = {
    Role.OWNER: {
        State.START: {Hello: State.GREETED},
        State.GREETED: {Proof: State.OPEN},
        State.OPEN: _open((*_ANY, *_OWNER)),
        State.CLOSED: {},
    },
    Role.AGENT: {
        State.START: {Welcome: State.OPEN},
        State.OPEN: _open((*_ANY, *_AGENT)),
        State.CLOSED: {},
    },
}
"""role -> state of that role -> message it sends -> its next state."""

TALK = {role: frozenset(kinds[State.OPEN]) - {Bye} for role, kinds in TRANSITIONS.items()}
"""Messages that change no state when both ends are OPEN."""

REQUIRES: dict[type[Any], State] = {Welcome: State.GREETED, Proof: State.OPEN}
"""Messages that may be sent only once the other end has reached a state. In OPEN, everything requires OPEN."""


def next_state(states: Mapping[Role, State], role: Role, kind: type[Any]) -> State:
    """Return the state of one end after it has sent a message.

    Parameters
    ----------
    states
        The states of both ends before.
    role
        The end that sends.
    kind
        The message's class.

    Raises
    ------
    ProtocolError
        It must not send one now.
    """
    state, peer = states[role], states[role.peer]
    after = TRANSITIONS[role].get(state, {}).get(kind)
    needs = REQUIRES.get(kind, State.OPEN if state is State.OPEN else peer)
    if kind is Bye or peer is State.CLOSED:  # one end may still speak while the other has said goodbye
        needs = peer
    if after is None or peer is not needs:
        raise ProtocolError(
            f"can't send {kind.__name__} when {role.value} is {state.value} and {role.peer.value} is {peer.value}"
        )
    return after
