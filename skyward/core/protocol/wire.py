"""The protocol between an owner, which submits tasks, and an agent, which runs them, without any I/O.

`Wire` turns messages into bytes and bytes into messages. It contains no socket, thread, clock or random source; both
ends use the same class, as do an agent and its slots. This module does not know what a task is.

A message is a small msgpack envelope and any number of raw buffers. On the stream it travels as pieces::

    piece    kind u8 | message u32 | length u32 | body
    SMALL    body = prelude + buffers          the whole message in one piece
    OPEN     body = prelude                    a large message begins; its buffers follow as DATA
    DATA     offset u64 before the body        the body is part of that message's buffers, from that offset on
    PACKED   offset u64 before the body        as DATA, but compressed with zstandard; from owners only
    prelude  envelope length u32 | buffer count u16 | buffer lengths u64 ... | envelope

Large messages are cut into pieces and small ones overtake them between two pieces, so a heartbeat or a small task never
waits for a gigabyte. Hence messages may arrive in another order than they were sent, and nobody may conclude anything
from their order: only small messages keep their order among themselves. Kinds that rely on it (`messages.ORDERED`) are
refused when they are large. A `fifo` wire keeps everything in order; agents use one to each slot, where the messages
are tasks that begin one after another.

A link may have further streams, its stripes, for large messages only: their pieces go on whichever stream accepts them,
since a single SSH channel can't fill a long line. Pieces are in order within their stream. A stripe whose next piece
belongs to a message that has not begun yet, because its OPEN is still in flight on another stream, waits. It never
waits forever: of all pieces in flight, the one that was sent first never has to wait.

The conversation opens with mutual proof that both ends know the pool's secret (HMAC over both nonces)::

    owner  Hello(nonce) ->            agent  Welcome(nonce, proof) ->            owner  Proof(proof) -> ...

All legal moves are in states.py. An illegal move, garbage, or a size over the limits raises `ProtocolError`, and
only that; any other exception from this module is a bug.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from skyward.core.errors import ProtocolError
from skyward.core.protocol.buffers import BufferPool
from skyward.core.protocol.compression import Packer, unpack
from skyward.core.protocol.envelopes import decode, encode
from skyward.core.protocol.framing import frame
from skyward.core.protocol.messages import ORDERED, Hello, Message, Ping, Proof, Welcome
from skyward.core.protocol.states import TALK, Role, State, next_state
from skyward.core.protocol.transfers import Ahead, Buffer, Filled, Incoming, Lane, Outgoing, SizeLimits

__all__ = [
    "VERSION",
    "WHOLE",
    "Buffer",
    "Filled",
    "Lane",
    "Received",
    "Role",
    "SizeLimits",
    "State",
    "Wire",
]

WHOLE = 32 * 1024
"""Maximum bytes of buffers in a message that is sent whole, in one piece; such messages never overtake each other."""

VERSION = 3
"""Version of the protocol. Both ends run the driver's code, so a mismatch means a stale agent."""


class Received(NamedTuple):
    """A message that arrived: its number (0: not numbered), the message, and its buffers, each writable."""

    number: int
    message: Message
    buffers: list[Filled]


_PIECE = struct.Struct("!BII")
_PLACED = struct.Struct("!BIIQ")  # the header of DATA and PACKED
_PRELUDE = struct.Struct("!IH")
_SMALL, _OPEN, _DATA, _PACKED = 0, 1, 2, 3
_MAX_BUFFERS = 0xFFFF  # of one message
_CONCURRENT = 2  # large messages sent at once
_MAX_CONCURRENT = 256  # accepted at once: with stripes, the ends of many messages are in flight
_MAX_PRELUDES = 16  # of maximum size, over all messages that are arriving
_MAX_STRIPES = 8
_GREETING = 64 * 1024  # largest message from a peer that has not proved who it is


@cache
def _head(count: int) -> struct.Struct:
    """Header of a piece, and the beginning of a prelude with this number of buffers."""
    return struct.Struct(f"!BIIIH{count}Q")


@cache
def _sizes(count: int) -> struct.Struct:
    return struct.Struct(f"!{count}Q")


class Wire:
    """One end of one link.

    Parameters
    ----------
    role
        Which end this is.
    secret
        The secret that each end must prove it knows.
    nonce
        Random bytes, used once; the caller chooses them, since this class has no random source.
    limits
        Maximum sizes accepted.

    Notes
    -----
    The driver of a wire has four verbs: `send` (queue a message), `data_to_send` (the next bytes to write),
    `receive_data` (feed bytes, get messages), `receive_eof`. Not thread-safe.

    A driver with stripes writes `small_to_send` to the first stream and `large_to_send` to whichever stripe accepts it;
    at the other end, each stripe is fed as a `Lane` of its own, unless it `waits`.
    """

    def __init__(
        self, role: Role, *, secret: bytes = b"", nonce: bytes = b"", limits: SizeLimits | None = None
    ) -> None:
        self.role = role
        self.limits = limits or SizeLimits()
        self.states = {Role.OWNER: State.START, Role.AGENT: State.START}
        self._secret = secret
        self._nonce = nonce
        self._peer_nonce = b""
        self._small: deque[bytes] = deque()  # whole pieces
        self._waiting: deque[tuple[bytes, list[memoryview]]] = deque()  # preludes and buffers of large messages
        self._active: deque[Outgoing] = deque()  # those that have begun
        self._fifo = False  # if so, small messages also wait in `_waiting`, as pieces without buffers
        self._concurrent = _CONCURRENT
        self._next = 0  # number of the next large message
        self.packer: Packer | None = None
        """May be set if the peer has said that it can read compressed pieces. Removed once it has failed."""
        self.packing_failed: Callable[[Exception], object] = lambda _: None
        """Called with the error when the packer fails; the piece is then sent uncompressed."""
        self.buffer_pool = BufferPool()  # for buffers that arrived and are no longer needed
        self._ahead = Ahead(self.buffer_pool)
        self._large = 0  # bytes of large messages not yet returned by large_to_send
        self._first = Lane()
        self._stripes: list[Lane] = []
        self._held: list[Lane] = []  # those that wait
        self._coming: dict[int, Incoming] = {}
        self._coming_size = self._coming_preludes = 0
        self._broken = False
        self._talking = False  # both ends are OPEN
        self._hears = False  # the peer is OPEN, and we were: what it began before it heard our goodbye still arrives
        self._mine, self._theirs = TALK[role], TALK[role.peer]
        self._largest = self.limits.prelude + WHOLE
        self._safe_total = min(WHOLE, self.limits.message)  # bytes up to which a message of any kind may be sent
        self._safe_prelude = min(_GREETING, self.limits.prelude)  # it can't announce too many buffers either

    @classmethod
    def opened(cls, role: Role, *, fifo: bool = False) -> Wire:
        """Make a wire that needs no greeting: between an agent and a slot that inherited its socket.

        With `fifo`, messages arrive in the order in which `send` was called.
        """
        wire = cls(role)
        wire._fifo = fifo
        wire._concurrent = 1 if fifo else _CONCURRENT
        wire.states = {Role.OWNER: State.OPEN, Role.AGENT: State.OPEN}
        wire._talking = wire._hears = True
        return wire

    def __repr__(self) -> str:
        mine, theirs = self.states[self.role].value, self.states[self.role.peer].value
        queued = f"{len(self._small)} small, {len(self._active) + len(self._waiting)} large to send"
        return f"<Wire {self.role.value}: {mine}, peer {theirs}; {queued}; {len(self._coming)} arriving>"

    @property
    def is_open(self) -> bool:
        """Whether both ends have proved who they are, and neither has said goodbye."""
        return self.states[Role.OWNER] is State.OPEN and self.states[Role.AGENT] is State.OPEN

    # --- greeting ---

    @property
    def name(self) -> bytes:
        """The owner's nonce, by which a stripe names the link it belongs to."""
        return self._nonce if self.role is Role.OWNER else self._peer_nonce

    def hello(self, session: str, received: int, link: bytes = b"") -> None:
        """Owner: begin.

        Parameters
        ----------
        session
            The session's name.
        received
            The last numbered message of the session that has arrived.
        link
            As a stripe: the name of the link that it is to join.
        """
        self.send(Hello(VERSION, session, self._nonce, received, link))

    def welcome(self, received: int, facts: dict[str, Any]) -> None:
        """Agent: answer `Hello`."""
        self.send(Welcome(VERSION, self._nonce, self._sign(Role.AGENT), received, facts))

    def prove(self) -> None:
        """Owner: answer `Welcome`, whose proof was checked when it arrived."""
        self.send(Proof(self._sign(Role.OWNER)))

    def _sign(self, role: Role) -> bytes:
        mine = role is self.role
        nonces = (self._nonce, self._peer_nonce) if mine else (self._peer_nonce, self._nonce)
        text = b"skyward " + role.value.encode() + b" " + b"".join(map(frame, nonces))
        return hmac.new(self._secret, text, hashlib.sha256).digest()

    # --- sending ---

    def send(self, message: Message, buffers: Sequence[Buffer] = (), number: int = 0) -> bytes | None:
        """Queue a message. Returns its encoded piece if it is a single one, which `send_again` takes on another link.

        Parameters
        ----------
        message
            What to send.
        buffers
            Its bulk; large ones must not change until they have been sent.
        number
            Its number in the conversation; 0: not numbered.

        Raises
        ------
        ProtocolError
            The message must not be sent now, or is too large. Nothing was queued, and the wire remains usable.
        """
        kind = type(message)
        talk = self._talking and kind in self._mine  # the common case: everything is open, and stays so
        state = State.OPEN if talk else next_state(self.states, self.role, kind)
        envelope = encode(message, number)
        sizes = [len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes for buffer in buffers]
        total = sum(sizes)
        length = _PRELUDE.size + 8 * len(sizes) + len(envelope)
        if total > self._safe_total or length > self._safe_prelude:
            self._check_sizes(kind, total, length, len(sizes))
        self._enter(self.role, state)
        if state is State.CLOSED:  # nobody needs the rest of what was being sent
            self._active.clear()
            self._waiting.clear()
            self._large = 0
        if total <= WHOLE:
            head = _head(len(sizes)).pack(_SMALL, 0, length + total, len(envelope), len(sizes), *sizes)
            piece = b"".join((head, envelope, *buffers))
            if self._fifo and (self._active or self._waiting):
                self._waiting.append((piece, []))
            else:
                self._small.append(piece)
            return piece
        head = _head(len(sizes)).pack(_OPEN, 0, length, len(envelope), len(sizes), *sizes)
        views = [memoryview(buffer).cast("B") for buffer, size in zip(buffers, sizes, strict=True) if size]
        self._waiting.append((head[_PIECE.size :] + envelope, views))  # its header is made when the message begins
        self._large += total
        return None

    def _check_sizes(self, kind: type[Any], total: int, length: int, count: int) -> None:
        """Raise `ProtocolError` unless a message of this kind may have this many bytes, prelude bytes and buffers."""
        if total > WHOLE and kind in ORDERED:
            raise ProtocolError(
                f"a {kind.__name__} of {total:,} bytes could be overtaken by the next one; the limit is {WHOLE:,} bytes"
            )
        if total > self.limits.message:
            raise ProtocolError(f"a message of {total:,} bytes is over the limit of {self.limits.message:,} bytes")
        if length > self.limits.prelude or count > _MAX_BUFFERS:
            raise ProtocolError(
                f"an envelope of {length:,} bytes and {count:,} buffers is over the limits of "
                f"{self.limits.prelude:,} and {_MAX_BUFFERS:,}"
            )

    def send_again(self, piece: bytes) -> None:
        """Queue a piece that `send` returned on an earlier link of the same end."""
        next_state(self.states, self.role, Ping)  # or any other message that only an open wire accepts
        self._small.append(piece)

    def data_to_send(self, budget: int = 1024 * 1024) -> list[bytes | memoryview]:
        """Return the next buffers to write, about `budget` bytes, small messages first; empty if there is nothing."""
        out = self.small_to_send()
        if self._active or self._waiting:
            out += self.large_to_send(budget - len(out[0]) if out else budget)
        return out

    def small_to_send(self) -> list[bytes | memoryview]:
        """Return all small messages, in order."""
        if not self._small:
            return []
        joined = b"".join(self._small)
        self._small.clear()
        return [joined]

    def large_to_send(self, budget: int = 1024 * 1024) -> list[bytes | memoryview]:
        """Return the next pieces of large messages, about `budget` bytes, for any stream of the link.

        Messages go in order, `_CONCURRENT` at a time taking turns piece by piece, so that a huge one does not hold up a
        large one, and yet each is complete as early as possible. A `fifo` wire sends one at a time.
        """
        out: list[bytes | memoryview] = []
        while budget > 0 and (self._active or self._waiting):
            if self._waiting and len(self._active) < self._concurrent:
                prelude, views = self._waiting.popleft()
                if not views:  # a small message on a fifo wire
                    out.append(prelude)
                    budget -= len(prelude)
                    continue
                self._next = (self._next + 1) & 0xFFFFFFFF
                out.append(_PIECE.pack(_OPEN, self._next, len(prelude)) + prelude)
                # Its first piece goes next, on the same stream: a message of one piece never has to be waited for.
                self._active.appendleft(Outgoing(self._next, views))
            message = self._active[0]  # it stays in the queue until its piece has been made
            views = message.views
            body = views[0][: self.limits.piece]
            packed = None if self.packer is None else self._packed(self.packer, message, body)
            self._active.popleft()
            if packed is None:
                out += (_PLACED.pack(_DATA, message.key, len(body), message.at), body)
            else:
                out += (_PLACED.pack(_PACKED, message.key, len(packed), message.at), packed)
            budget -= len(body)
            self._large -= len(body)
            message.at += len(body)
            views[0] = views[0][len(body) :]
            if not len(views[0]):
                views.pop(0)
            if views:
                self._active.append(message)
        return out

    def _packed(self, packer: Packer, message: Outgoing, body: memoryview) -> bytes | None:
        """Compress the next piece of a message; None to send it as it is, as after a failure: it is only a gain."""
        try:
            return packer.pack(message, body)
        except Exception as error:  # out of memory, for example
            self.packer = None
            self.packing_failed(error)
            return None

    @property
    def has_data(self) -> bool:
        """Whether `data_to_send` would return anything."""
        return bool(self._small or self._active or self._waiting)

    @property
    def has_small(self) -> bool:
        """Whether `small_to_send` would return anything."""
        return bool(self._small)

    @property
    def has_large(self) -> bool:
        """Whether `large_to_send` would return anything."""
        return bool(self._active or self._waiting)

    @property
    def large(self) -> int:
        """Bytes of large messages that `large_to_send` has not returned yet."""
        return self._large

    # --- receiving ---

    def stripe(self) -> Lane:
        """Add a stream on which the peer's large messages arrive; feed its bytes to `receive_data`."""
        if not self._talking or len(self._stripes) >= _MAX_STRIPES:
            raise ProtocolError(f"a link has at most {_MAX_STRIPES} stripes, and none before both ends are known")
        self._stripes.append(Lane())
        return self._stripes[-1]

    def receive_data(self, data: Buffer, lane: Lane | None = None) -> list[Received]:
        """Feed bytes as they arrived, however they were cut, and return the messages that are now complete.

        Bytes of a stripe are fed with its `lane`, and not while it `waits`, so a lane never holds more than one feed.

        Raises
        ------
        ProtocolError
            The peer broke the protocol. The wire refuses everything from then on.
        """
        if self._broken:
            raise ProtocolError("the peer broke the protocol earlier; this link is of no further use")
        if lane is None:
            lane = self._first
        elif lane.waits:
            raise ProtocolError("more bytes on a stripe that has to wait for another")
        got: list[Received] = []
        try:
            self._receive(memoryview(data).cast("B"), lane, got)
            if self._held:
                self._release(got)
        except ProtocolError:
            self.receive_eof()
            raise
        return got

    def receive_eof(self) -> None:
        """Note that a stream has ended. An end within a message, or before `Bye`, means that the link was lost."""
        self._coming.clear()
        self._first, self._stripes, self._held = Lane(), [], []
        self._broken = True

    def _receive(self, view: memoryview, lane: Lane, got: list[Received]) -> None:
        at, end = 0, len(view)
        while at < end:
            if lane.into is not None:
                at += self._fill(view[at:], lane, lane.into, got)
            elif lane.buffer:
                at += self._collect(view[at:], lane, got)
            else:  # the common case: whole pieces are read in place
                size = self._piece_size(view[at : at + _PIECE.size])
                if size is None or at + size > end:
                    lane.buffer += view[at:]
                    return
                self._piece(view[at : at + size], lane, got)
                at += size

    def _release(self, got: list[Received]) -> None:
        """Resume the streams that were waiting for a message that has begun now."""
        while lane := next((lane for lane in self._held if lane.wanted in self._coming), None):
            self._held.remove(lane)
            held = bytes(lane.buffer)
            lane.buffer.clear()
            lane.wanted = None
            self._receive(memoryview(held), lane, got)

    def _collect(self, view: memoryview, lane: Lane, got: list[Received]) -> int:
        """Complete the piece in the buffer, first its header, then what that announces. Returns the bytes used."""
        if lane.waits:  # `view` does not end that: it arrived together with the piece that must wait
            lane.buffer += view
            return len(view)
        size = self._piece_size(lane.buffer)
        missing = (_PIECE.size if size is None else size) - len(lane.buffer)
        lane.buffer += view[:missing]
        if self._piece_size(lane.buffer) == len(lane.buffer):
            piece = bytes(lane.buffer)
            lane.buffer.clear()
            self._piece(memoryview(piece), lane, got)
        return min(missing, len(view))

    def _piece_size(self, data: memoryview | bytearray) -> int | None:
        """Return the size of the piece that begins here, without the body of DATA; None if it is not known yet."""
        if len(data) < _PIECE.size:
            return None
        kind, _, length = _PIECE.unpack_from(data)
        if kind == _SMALL and length <= (self._largest if self._hears else _GREETING):
            return _PIECE.size + int(length)
        if kind == _DATA and self._hears:
            return _PLACED.size
        if kind == _PACKED and self._hears and length <= self.limits.piece and self.role is Role.AGENT:
            return _PLACED.size + int(length)
        if kind != _OPEN or not self._hears or length > self.limits.prelude:
            raise ProtocolError(f"not a piece of this protocol, or too long: kind {kind}, {length:,} bytes")
        return _PIECE.size + int(length)

    def _piece(self, piece: memoryview, lane: Lane, got: list[Received]) -> None:
        kind, number, length = _PIECE.unpack_from(piece)
        if kind in (_DATA, _PACKED):
            self._place(piece, lane, got)
            return
        seq, message, sizes, used = self._prelude(piece, _PIECE.size)
        if kind == _SMALL:
            buffers: list[Filled] = []
            for size in sizes:
                buffers.append(bytearray(piece[used : used + size]))
                used += size
            if used != len(piece) or lane is not self._first:
                raise ProtocolError("a small message that does not fill its piece, or is on a stripe")
            self._arrived(Received(seq, message, buffers), got)
        elif used != len(piece):
            raise ProtocolError("a large message begins with more than its prelude")
        else:
            self._begin(number, seq, message, sizes, length)

    def _place(self, piece: memoryview, lane: Lane, got: list[Received]) -> None:
        """Take a whole PACKED piece, or the header of a DATA piece, whose body is put in place as it arrives."""
        kind, number, length, at = _PLACED.unpack_from(piece)
        coming = self._coming.get(number)
        if coming is not None and kind == _PACKED:
            data = unpack(piece[_PLACED.size :], min(self.limits.piece, coming.missing))
            coming.claim(at, len(data))
            coming.fill(at, memoryview(data))
            self._finish(coming, got)
        elif coming is not None:
            coming.claim(at, length)
            lane.into, lane.at, lane.left = coming, at, length
        elif lane is self._first:  # its messages begin on it, or began before there were stripes
            raise ProtocolError(f"a piece of {length:,} bytes for message {number}, which has not begun")
        else:
            lane.wanted = number
            lane.buffer += piece
            self._held.append(lane)

    def _begin(self, number: int, seq: int, message: Message, sizes: Sequence[int], prelude: int) -> None:
        total = sum(sizes)
        if not total or number in self._coming:
            raise ProtocolError(f"message {number} begins twice, or without bytes")
        if total > self.limits.message or self._coming_size + total > self.limits.open:
            raise ProtocolError(f"a message of {total:,} bytes is over the limit of {self.limits.message:,} bytes")
        preludes = self._coming_preludes + prelude
        if len(self._coming) >= _MAX_CONCURRENT or preludes > _MAX_PRELUDES * self.limits.prelude:
            raise ProtocolError(f"more than {_MAX_CONCURRENT} large messages at once, or preludes that are too large")
        self._coming[number] = Incoming(number, seq, message, sizes, prelude, self._ahead)
        self._coming_size += total
        self._coming_preludes = preludes

    def _fill(self, view: memoryview, lane: Lane, coming: Incoming, got: list[Received]) -> int:
        """Take bytes of the DATA piece that is arriving. Returns how many."""
        data = view[: lane.left]
        coming.fill(lane.at, data)
        lane.at += len(data)
        lane.left -= len(data)
        if not lane.left:
            lane.into = None
            self._finish(coming, got)
        return len(data)

    def _finish(self, coming: Incoming, got: list[Received]) -> None:
        if not coming.missing:
            del self._coming[coming.key]
            self._coming_size -= coming.size
            self._coming_preludes -= coming.prelude
            self._arrived(Received(coming.number, coming.message, coming.whole()), got)

    def _prelude(self, piece: memoryview, at: int) -> tuple[int, Message, tuple[int, ...], int]:
        """Read the prelude at `at`: number, message, sizes of the buffers, and where the prelude ends."""
        try:
            length, count = _PRELUDE.unpack_from(piece, at)
            sizes = _sizes(count).unpack_from(piece, at + _PRELUDE.size) if count else ()
        except struct.error as error:
            raise ProtocolError(f"a prelude is cut short: {error}") from error
        start = at + _PRELUDE.size + 8 * count
        if start + length > len(piece):
            raise ProtocolError("an envelope is cut short")
        seq, message = decode(piece[start : start + length], count)
        return seq, message, sizes, start + length

    def _arrived(self, received: Received, got: list[Received]) -> None:
        message = received.message
        if not self._talking or type(message) not in self._theirs:
            self._enter(self.role.peer, next_state(self.states, self.role.peer, type(message)))
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
            was_open = self.states[self.role] in (State.OPEN, State.CLOSED)
            self._hears = was_open and self.states[self.role.peer] is State.OPEN
