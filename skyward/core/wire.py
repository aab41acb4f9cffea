"""The protocol between an owner (who gives tasks) and a worker (who runs them), without any I/O.

`Wire` turns messages into bytes and bytes into messages. It has no socket, thread, clock or random source in it; the
same class sits on both ends, and also between an agent and its slots. This file does not know what a task means.

A message is a small msgpack envelope and any number of raw buffers. On the stream it travels as pieces::

    piece    kind u8 | message u32 | length u32 | body
    SMALL    body = prelude + buffers          the whole message in one piece
    OPEN     body = prelude                    a large message begins; its buffers follow as DATA
    DATA     body = the next bytes of the buffers of the message with that number
    prelude  envelope length u32 | buffer count u16 | buffer lengths u64 ... | envelope

Large messages are cut in pieces, small ones overtake them between two pieces, so a heartbeat or a small task never
waits for a gigabyte. Hence messages can arrive in another order than they were sent; nothing here hides that.

The conversation opens with a mutual proof that both ends know the pool's secret (HMAC over both nonces)::

    owner  Hello(nonce) ->            worker  Welcome(nonce, proof) ->            owner  Proof(proof) -> ...

All legal moves are in `TRANSITIONS`. An illegal move, garbage, or a size over the limits raises `ProtocolError`, and
only that; any other exception from this module is a bug.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import mmap
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Union

import msgpack

from skyward.core.errors import ProtocolError
from skyward.core.messages import (
    CODES,
    FIELDS,
    MESSAGES,
    Ack,
    Blob,
    Bye,
    Cancel,
    Done,
    Failed,
    Fetch,
    Forget,
    Hello,
    Kept,
    Listening,
    Message,
    Metric,
    Output,
    Peers,
    Ping,
    Pong,
    Proof,
    Reached,
    Ready,
    Recall,
    Returned,
    Run,
    Setup,
    StreamClose,
    StreamData,
    StreamOpen,
    Welcome,
)

__all__ = [
    "REQUIRES",
    "TRANSITIONS",
    "VERSION",
    "WHOLE",
    "Buffer",
    "Filled",
    "Limits",
    "Received",
    "Role",
    "State",
    "Wire",
]

WHOLE = 32 * 1024
"""A message with at most so many bytes of buffers is sent whole, in one piece; none of these overtakes another."""

VERSION = 1
"""Number of the protocol. Both ends run the driver's own code, so unequal numbers mean a stale agent."""

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]
"""What can be sent."""

Filled = Union[bytearray, mmap.mmap]
"""What arrives: a writable buffer; a large one begins at a page, so that arrays in it are aligned."""


class Role(enum.Enum):
    """Which end of the conversation."""

    OWNER = "owner"
    WORKER = "worker"

    __hash__ = object.__hash__  # members are singletons; Enum's own is Python code, and these key every look-up

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.WORKER if self is Role.OWNER else Role.OWNER


class State(enum.Enum):
    """How far one end has come."""

    START = "start"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"

    __hash__ = object.__hash__


# --- legal moves ----------------------------------------------------------------------------------------------------

_ANY = (Ping, Pong, Ack, Bye, StreamData, StreamClose)
_OWNER = (Setup, Run, Cancel, Recall, Blob, Fetch, Forget, Peers)
_WORKER = (Ready, Done, Failed, Returned, Output, Metric, StreamOpen, Kept, Listening, Reached)


def _open(kinds: Iterable[type[Any]]) -> dict[type[Any], State]:
    return {kind: State.CLOSED if kind is Bye else State.OPEN for kind in kinds}


TRANSITIONS: dict[Role, dict[State, dict[type[Any], State]]] = {
    Role.OWNER: {
        State.START: {Hello: State.GREETED},
        State.GREETED: {Proof: State.OPEN},
        State.OPEN: _open((*_ANY, *_OWNER)),
        State.CLOSED: {},
    },
    Role.WORKER: {
        State.START: {Welcome: State.OPEN},
        State.OPEN: _open((*_ANY, *_WORKER)),
        State.CLOSED: {},
    },
}
"""role -> state of that role -> message it sends -> its next state."""

_TALK = {role: frozenset(kinds[State.OPEN]) - {Bye} for role, kinds in TRANSITIONS.items()}
"""What changes no state when both ends are OPEN."""

REQUIRES: dict[type[Any], State] = {Welcome: State.GREETED, Proof: State.OPEN}
"""Messages that may be sent only when the other end has reached a state. In OPEN, everything requires OPEN."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes; what is larger is refused before memory is allocated.

    Attributes
    ----------
    piece
        Largest body of one piece that is sent. A message up to this size goes as one piece.
    prelude
        Largest prelude (envelope and buffer lengths) that is accepted.
    message
        Largest sum of the buffers of one message.
    open
        Largest sum over all messages that have begun and not ended.
    """

    piece: int = 256 * 1024
    prelude: int = 4 * 1024 * 1024
    message: int = 16 * 2**30
    open: int = 32 * 2**30


class Received(NamedTuple):
    """A message that arrived: its number (0: not numbered), the message, and its buffers (each writable)."""

    number: int
    message: Message
    buffers: list[Filled]


_PIECE = struct.Struct("!BII")
_PRELUDE = struct.Struct("!IH")
_SMALL, _OPEN, _DATA = 0, 1, 2
_MAX_BUFFERS = 0xFFFF  # of one message
_PAGED = 1 << 20  # buffers from this size get pages of their own
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a task that forks must not share them with its children
_TURNS = 2  # large messages that are sent at a time
_MAX_TURNS = 16  # and that are accepted at a time
_GREETING = 64 * 1024  # largest message from a peer that has not proved who it is


_pack = msgpack.Packer(autoreset=True).pack
_GOOD: tuple[set[tuple[type, ...]], ...] = tuple(set() for _ in MESSAGES)  # types of fields that were found right


@cache
def _head(count: int) -> struct.Struct:
    """Header of a piece and beginning of a prelude with so many buffers."""
    return struct.Struct(f"!BIIIH{count}Q")


@cache
def _sizes(count: int) -> struct.Struct:
    return struct.Struct(f"!{count}Q")


class _Incoming:
    """A large message whose buffers are arriving."""

    __slots__ = ("buffers", "index", "message", "missing", "number", "offset", "size")

    def __init__(self, number: int, message: Message, sizes: Sequence[int]) -> None:
        self.number = number
        self.message = message
        # Anonymous memory is taken only as it is filled, so a peer can't make us take what it does not send.
        self.buffers: list[Filled] = [
            bytearray(size) if size < _PAGED else mmap.mmap(-1, size, flags=_PRIVATE) for size in sizes
        ]
        self.size = self.missing = sum(sizes)
        self.index = self.offset = 0

    def fill(self, data: memoryview) -> None:
        """Put the next bytes where they belong; the caller has checked that they are not too many."""
        self.missing -= len(data)
        while len(data):
            target = self.buffers[self.index]
            count = min(len(target) - self.offset, len(data))
            target[self.offset : self.offset + count] = data[:count]
            data = data[count:]
            self.offset += count
            if self.offset == len(target):
                self.index += 1
                self.offset = 0


class Wire:
    """One end of one link.

    Parameters
    ----------
    role
        Which end this is.
    secret
        What both ends must prove to know.
    nonce
        Random bytes, used once; chosen by the caller since this class has no random source.
    limits
        Sizes that are accepted.

    Notes
    -----
    The driver of a wire has four verbs: `send` (queue a message), `data_to_send` (the next bytes to write),
    `receive_data` (feed bytes, get messages), `receive_eof`. Not thread safe.
    """

    def __init__(self, role: Role, *, secret: bytes = b"", nonce: bytes = b"", limits: Limits | None = None) -> None:
        self.role = role
        self.limits = limits or Limits()
        self.states = {Role.OWNER: State.START, Role.WORKER: State.START}
        self._secret = secret
        self._nonce = nonce
        self._peer_nonce = b""
        self._small: deque[bytes] = deque()  # whole pieces
        self._waiting: deque[tuple[bytes, list[memoryview]]] = deque()  # preludes and buffers of large messages
        self._active: deque[tuple[int, list[memoryview]]] = deque()  # those that have begun, by number
        self._next = 0  # number of the next large message
        self._buffer = bytearray()  # a piece that has not arrived whole (never the body of DATA)
        self._into: _Incoming | None = None  # where the body of the present DATA piece goes
        self._left = 0  # bytes of that body still to come
        self._coming: dict[int, _Incoming] = {}
        self._coming_size = 0
        self._broken = False
        self._talking = False  # both ends are OPEN
        self._mine, self._theirs = _TALK[role], _TALK[role.peer]
        self._largest = self.limits.prelude + WHOLE

    @classmethod
    def opened(cls, role: Role, *, limits: Limits | None = None) -> Wire:
        """A wire that needs no greeting: between an agent and a slot that inherited its socket."""
        wire = cls(role, limits=limits)
        wire.states = {Role.OWNER: State.OPEN, Role.WORKER: State.OPEN}
        wire._talking = True
        return wire

    def __repr__(self) -> str:
        mine, theirs = self.states[self.role].value, self.states[self.role.peer].value
        queued = f"{len(self._small)} small, {len(self._active) + len(self._waiting)} large to send"
        return f"<Wire {self.role.value}: {mine}, peer {theirs}; {queued}; {len(self._coming)} arriving>"

    @property
    def is_open(self) -> bool:
        """Both ends have proved who they are, and neither has said goodbye."""
        return self.states[Role.OWNER] is State.OPEN and self.states[Role.WORKER] is State.OPEN

    # --- greeting ---

    def hello(self, session: str, received: int) -> None:
        """Owner: begin."""
        self.send(Hello(VERSION, session, self._nonce, received))

    def welcome(self, received: int, facts: dict[str, Any]) -> None:
        """Worker: answer `Hello`."""
        self.send(Welcome(VERSION, self._nonce, self._sign(Role.WORKER), received, facts))

    def prove(self) -> None:
        """Owner: answer `Welcome`, whose proof has been checked when it was received."""
        self.send(Proof(self._sign(Role.OWNER)))

    def _sign(self, role: Role) -> bytes:
        mine = role is self.role
        nonces = (self._nonce, self._peer_nonce) if mine else (self._peer_nonce, self._nonce)
        text = b"skyward " + role.value.encode() + b" " + b"".join(struct.pack("!I", len(n)) + n for n in nonces)
        return hmac.new(self._secret, text, hashlib.sha256).digest()

    # --- sending ---

    def send(self, message: Message, buffers: Sequence[Buffer] = (), number: int = 0) -> None:
        """Queue a message.

        Raises
        ------
        ProtocolError
            The message may not be sent now, or is too large. Nothing was queued, the wire can go on.
        """
        kind = type(message)
        talk = self._talking and kind in self._mine  # the common case: everything is open, and stays so
        state = State.OPEN if talk else self._next_state(self.role, kind)
        envelope: bytes = _pack((CODES[kind], number, *message))
        sizes = [len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes for buffer in buffers]
        total = sum(sizes)
        if total > self.limits.message:
            raise ProtocolError(f"a message of {total:,} bytes is over the limit of {self.limits.message:,} bytes")
        length = _PRELUDE.size + 8 * len(sizes) + len(envelope)
        if length > self.limits.prelude or len(sizes) > _MAX_BUFFERS:
            raise ProtocolError(
                f"an envelope of {length:,} bytes and {len(sizes):,} buffers is over the limits of "
                f"{self.limits.prelude:,} and {_MAX_BUFFERS:,}"
            )
        self._enter(self.role, state)
        if total <= WHOLE:
            head = _head(len(sizes)).pack(_SMALL, 0, length + total, len(envelope), len(sizes), *sizes)
            self._small.append(b"".join((head, envelope, *buffers)))
        else:
            # The number is filled in when the message begins.
            head = _head(len(sizes)).pack(_OPEN, 0, length, len(envelope), len(sizes), *sizes)
            views = [memoryview(buffer).cast("B") for buffer, size in zip(buffers, sizes, strict=True) if size]
            self._waiting.append((head[_PIECE.size :] + envelope, views))

    def data_to_send(self, budget: int = 1024 * 1024) -> list[bytes | memoryview]:
        """The next buffers to write, about `budget` bytes; an empty list when there is nothing.

        Small messages come first. Large ones go in order, `_TURNS` of them at a time a piece each in turn, so that a
        large one is not held up by a huge one and yet each is complete as early as can be.
        """
        out: list[bytes | memoryview] = []
        if self._small:
            joined = b"".join(self._small)
            self._small.clear()
            out.append(joined)
            budget -= len(joined)
        while budget > 0 and (self._active or self._waiting):
            if self._waiting and len(self._active) < _TURNS:
                prelude, views = self._waiting.popleft()
                self._next = (self._next + 1) & 0xFFFFFFFF
                out.append(_PIECE.pack(_OPEN, self._next, len(prelude)) + prelude)
                self._active.append((self._next, views))
            number, views = self._active.popleft()
            body = views[0][: self.limits.piece]
            out += (_PIECE.pack(_DATA, number, len(body)), body)
            budget -= len(body)
            views[0] = views[0][len(body) :]
            if not len(views[0]):
                views.pop(0)
            if views:
                self._active.append((number, views))
        return out

    @property
    def has_data(self) -> bool:
        """Whether `data_to_send` would return anything."""
        return bool(self._small or self._active or self._waiting)

    # --- receiving ---

    def receive_data(self, data: Buffer) -> list[Received]:
        """Feed bytes as they came, however they were cut; get the messages that are now complete.

        Raises
        ------
        ProtocolError
            The peer broke the protocol. The wire refuses everything from then on.
        """
        if self._broken:
            raise ProtocolError("the peer broke the protocol earlier; this link is of no further use")
        try:
            return self._receive(memoryview(data).cast("B"))
        except ProtocolError:
            self._broken = True
            self._coming.clear()
            self._buffer.clear()
            raise

    def receive_eof(self) -> None:
        """Tell that the stream has ended; an end in mid-message, or before `Bye`, is the link's loss, not ours."""
        self._coming.clear()
        self._buffer.clear()
        self._broken = True

    def _receive(self, view: memoryview) -> list[Received]:
        got: list[Received] = []
        at, end = 0, len(view)
        while at < end:
            if self._into is not None:
                at += self._fill(view[at:], got)
            elif self._buffer:
                at += self._collect(view[at:], got)
            else:  # the common case: whole pieces are read where they are
                size = self._piece_size(view[at : at + _PIECE.size])
                if size is None or at + size > end:
                    self._buffer += view[at:]
                    return got
                self._piece(view[at : at + size], got)
                at += size
        return got

    def _collect(self, view: memoryview, got: list[Received]) -> int:
        """Complete the piece in the buffer: first its header, then as much as the header says; the bytes used."""
        size = self._piece_size(self._buffer)
        missing = (_PIECE.size if size is None else size) - len(self._buffer)
        self._buffer += view[:missing]
        if self._piece_size(self._buffer) == len(self._buffer):
            piece = bytes(self._buffer)
            self._buffer.clear()
            self._piece(memoryview(piece), got)
        return min(missing, len(view))

    def _piece_size(self, data: memoryview | bytearray) -> int | None:
        """Size of the piece that begins here, header included, without DATA's body; None when it can't be said yet."""
        if len(data) < _PIECE.size:
            return None
        kind, number, length = _PIECE.unpack_from(data)
        if kind == _SMALL and length <= (self._largest if self._talking else _GREETING):
            return _PIECE.size + int(length)
        if kind == _DATA:
            coming = self._coming.get(number)
            if coming is None or not 0 < length <= coming.missing:
                raise ProtocolError(f"a DATA piece of {length:,} bytes for message {number} that does not want them")
            return _PIECE.size
        if kind != _OPEN or not self._talking or length > self.limits.prelude:
            raise ProtocolError(f"not a piece of this protocol, or too long: kind {kind}, {length:,} bytes")
        return _PIECE.size + int(length)

    def _piece(self, piece: memoryview, got: list[Received]) -> None:
        kind, number, length = _PIECE.unpack_from(piece)
        if kind == _DATA:
            self._into, self._left = self._coming[number], length
            return
        seq, message, sizes, used = self._prelude(piece, _PIECE.size)
        if kind == _SMALL:
            buffers: list[Filled] = []
            for size in sizes:
                buffers.append(bytearray(piece[used : used + size]))
                used += size
            if used != len(piece):
                raise ProtocolError("the buffers of a small message do not fill its piece")
            self._arrived(Received(seq, message, buffers), got)
        else:
            self._begin(number, seq, message, sizes, used == len(piece))

    def _begin(self, number: int, seq: int, message: Message, sizes: Sequence[int], exact: bool) -> None:
        total = sum(sizes)
        if not exact or not total or number in self._coming:
            raise ProtocolError(f"message {number} begins twice, without bytes, or with too many")
        if total > self.limits.message or self._coming_size + total > self.limits.open:
            raise ProtocolError(f"a message of {total:,} bytes is over the limit of {self.limits.message:,} bytes")
        if len(self._coming) >= _MAX_TURNS:
            raise ProtocolError(f"more than {_MAX_TURNS} large messages at a time")
        try:
            self._coming[number] = _Incoming(seq, message, sizes)
        except (MemoryError, OSError) as error:
            raise ProtocolError(f"no memory for a message of {total:,} bytes: {error}") from error
        self._coming_size += total

    def _fill(self, view: memoryview, got: list[Received]) -> int:
        """Take bytes of the DATA piece that is arriving; how many."""
        coming = self._into
        assert coming is not None
        data = view[: self._left]
        coming.fill(data)
        self._left -= len(data)
        if not self._left:
            self._into = None
            if not coming.missing:
                number = next(key for key, value in self._coming.items() if value is coming)
                del self._coming[number]
                self._coming_size -= coming.size
                self._arrived(Received(coming.number, coming.message, coming.buffers), got)
        return len(data)

    def _prelude(self, piece: memoryview, at: int) -> tuple[int, Message, tuple[int, ...], int]:
        """Number, message, sizes of the buffers, and where the prelude that begins at `at` ends."""
        try:
            length, count = _PRELUDE.unpack_from(piece, at)
            sizes = _sizes(count).unpack_from(piece, at + _PRELUDE.size) if count else ()
            start = at + _PRELUDE.size + 8 * count
            if start + length > len(piece):
                raise ProtocolError("an envelope is cut short")
            code, seq, *fields = msgpack.unpackb(piece[start : start + length], strict_map_key=False)
            kind, good, kinds = MESSAGES[code], _GOOD[code], tuple(map(type, fields))
        except ProtocolError:
            raise
        except Exception as error:  # msgpack's errors have no common base, and garbage meets them all
            raise ProtocolError(f"not an envelope of this protocol: {error!r}") from error
        if type(code) is not int or type(seq) is not int or code < 0 or seq < 0:
            raise ProtocolError(f"not an envelope of this protocol: code {code!r:.50}, number {seq!r:.50}")
        if kinds not in good:
            wanted = FIELDS[code]
            if len(kinds) != len(wanted) or not all(k in types for k, types in zip(kinds, wanted, strict=True)):
                raise ProtocolError(f"not a {kind.__name__} of this protocol: {fields!r:.200}")
            good.add(kinds)  # the combinations that are allowed are few
        return seq, kind(*fields), sizes, start + length

    def _arrived(self, received: Received, got: list[Received]) -> None:
        message = received.message
        if not self._talking or type(message) not in self._theirs:
            self._enter(self.role.peer, self._next_state(self.role.peer, type(message)))
            self._check_greeting(message)
        got.append(received)

    def _check_greeting(self, message: Message) -> None:
        if isinstance(message, (Hello, Welcome)):
            if message.version != VERSION:
                raise ProtocolError(f"the peer speaks version {message.version} of the protocol, we speak {VERSION}")
            self._peer_nonce = message.nonce
        if isinstance(message, (Welcome, Proof)) and not hmac.compare_digest(message.proof, self._sign(self.role.peer)):
            raise ProtocolError("the peer does not know the pool's secret")

    def _enter(self, role: Role, state: State) -> None:
        if state is not self.states[role]:
            self.states[role] = state
            self._talking = self.is_open

    def _next_state(self, role: Role, kind: type[Any]) -> State:
        state, peer = self.states[role], self.states[role.peer]
        after = TRANSITIONS[role].get(state, {}).get(kind)
        needs = REQUIRES.get(kind, State.OPEN if state is State.OPEN else peer)
        if kind is Bye or peer is State.CLOSED:  # one end may still speak while the other has said goodbye
            needs = peer
        if after is None or peer is not needs:
            raise ProtocolError(
                f"can't send {kind.__name__} when {role.value} is {state.value} and {role.peer.value} is {peer.value}"
            )
        return after
