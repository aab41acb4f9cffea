"""Bytes that nobody asked for: of strangers at an agent's door, of those who answer in its place, and of liars."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
import zstandard

from skyward.core.errors import ProtocolError
from skyward.core.nodes.session import Session
from skyward.core.protocol import messages as m
from skyward.core.protocol.envelopes import encode
from skyward.core.protocol.framing import frame
from skyward.core.protocol.wire import VERSION, Role, Wire
from tests.simulation.node import SECRET, Machine
from tests.simulation.world import World

__all__ = ["KINDS", "bridge", "command", "crowd", "impersonate", "join", "lie", "trespass", "usurp", "visit"]

_LINGERS = 20.0  # seconds that a stranger stays at most; the agent waits for ten
_NOBODY = 10**9  # number of no task
_CROWD = 40  # the agent listens to 32 at a time


def _piece(
    envelope: bytes, kind: int = 0, sizes: tuple[int, ...] = (), *, number: int = 0, more: bytes = b"", less: int = 0
) -> bytes:
    """A piece of the protocol; `more` is within it beyond its prelude, and `less` is missing of its buffers."""
    prelude = struct.pack(f"!IH{len(sizes)}Q", len(envelope), len(sizes), *sizes) + envelope
    size = len(prelude) + (sum(sizes) - less if kind == 0 else 0) + len(more)
    return struct.pack("!BII", kind, number, size) + prelude + more


def _hello(random: Random) -> bytes:
    return encode(m.Hello(VERSION, "somebody else's", random.randbytes(16), 0), 0)


def _value(random: Random, depth: int = 0) -> Any:
    """Anything that msgpack can say."""
    kinds: list[Callable[[], Any]] = [
        lambda: random.randrange(-(2**63), 2**64),
        lambda: random.choice((0, 1, -1, 127, 2**31, 0.5, float("nan"), float("inf"), None, True, "", b"")),
        lambda: "x" * random.choice((3, 40, 300, 70_000)),
        lambda: random.randbytes(random.choice((3, 40, 300, 2_000))),
        lambda: [_value(random, depth + 1) for _ in range(random.choice((0, 1, 5, 20)))],
        lambda: {f"{number}": _value(random, depth + 1) for number in range(random.choice((0, 2, 17)))},
    ]
    return random.choice(kinds if depth < 3 else kinds[:4])()


def _nonsense(random: Random) -> bytes:
    """An envelope that means nothing, or not quite something."""
    fields = [_value(random) for _ in range(random.randrange(9))]
    packed: bytes = msgpack.packb([random.choice((-1, 10**6, *range(len(m.MESSAGES)))), random.randrange(3), *fields])
    how = random.randrange(6)
    if how == 0:
        return packed[: random.randrange(len(packed))]
    if how == 1:
        at = random.randrange(len(packed))
        return packed[:at] + random.randbytes(1) + packed[at + 1 :]
    if how == 2:  # it declares more than it holds
        return random.choice((b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xdc\xff\xff")) + packed + bytes(1500)
    if how == 3:
        return b"\x91" * random.choice((20, 30_000)) + b"\xc0"
    if how == 4:
        return b"\xdc\x40\x00" + bytes(1200) + random.choice((b"\xc7\x01\x05", b"\xd4\x01", b"\xdb\x00", b"\xc1"))
    return packed


def _odd_command(random: Random) -> bytes:
    return _odd_piece(random, m.Blob(b"no blob", 5, 0))


def _odd_piece(random: Random, message: m.Message | None = None) -> bytes:
    """A piece that some part of the protocol forbids, whatever has been said before."""
    number, size = random.choice((0, 1, 2, 3, 10**6)), random.choice((0, 1, 5, 300))
    open_ = encode(message or m.Done(_NOBODY, 0.1), 10**6)
    kinds_of_value = random.choice((b"\xc1", b"\xc7\x00\x01", b"\xdb\x00", b"\xda\xff\xff"))
    kinds: list[Callable[[], bytes]] = [
        lambda: struct.pack("!BII", random.choice((4, 9, 255)), number, 5) + b"abcde",  # no such kind
        lambda: struct.pack("!BIIQ", 2, number, size, random.choice((0, 7, 2**62))) + bytes(size),
        lambda: struct.pack("!BIIQ", 3, number, size, 0) + random.randbytes(size),
        lambda: _piece(open_, 1, (100_000,)) * 2,  # it begins twice
        lambda: _piece(open_, 1, (2**40,)),
        lambda: _piece(open_, 1, ()),
        lambda: _piece(open_, 1, (1,) * 3000) + b"x",
        lambda: struct.pack("!BIIIH", 0, 0, 6, 2**31, 0),  # the envelope would be longer than the piece
        lambda: struct.pack("!BIIIH", 0, 0, 6, 3, 500),  # sizes of buffers that it has no room for
        lambda: struct.pack("!BII", 0, 0, 3) + b"abc",
        lambda: _piece(encode(m.Done(_NOBODY, 0.1), 10**6), 0, (5,))[:-5] + b"abc",
        lambda: _piece(encode(m.Load(None, 1, 1, 1, 1, [[[[[[]]]]]]), 0)),
        lambda: _piece(encode(m.Began([1] * 70_000, [1]), 10**6)),
        lambda: _piece(encode(m.Output(1), 10**6), 1, (100_000,)),  # it must not be large
        lambda: _piece(open_, 1, (100_000,), more=b"more than its prelude"),
        lambda: _piece(open_, 0, (5, 5), less=3) + bytes(7),
        lambda: (
            _piece(open_, 1, (2**20 - 1,) * 200)
            + b"".join(struct.pack("!BIIQ", 2, 0, 1, at << 20) + b"x" for at in range(100))
        ),  # much memory for little
        lambda: _piece(open_, 1, (50_000,)) + _packed(60_000),
        lambda: _piece(b"\xdc" + struct.pack("!H", 1201) + bytes(1200) + kinds_of_value + bytes(9)),
        lambda: struct.pack("!BII", 1, 0, 20) + _piece(open_, 1, (5,))[9:],  # another length than it has
        lambda: b"".join(_piece(open_, 1, (2**20, n + 1)) for n in range(300)),
        lambda: b"".join(_piece(open_, 1, (5, n + 1), number=n) for n in range(300)),
        lambda: _piece(open_, 1, (50_000,)) + struct.pack("!BIIQ", 2, 0, 60_000, 0),  # more than is missing
        lambda: _piece(open_, 1, (50_000,)) + struct.pack("!BIIQ", 3, 0, 9, 0) + b"not zstd!",
        lambda: (
            _piece(open_, 1, (5_000_000,))
            + b"".join(struct.pack("!BIIQ", 2, 0, 1, 2 * at) + b"x" for at in range(1100))
        ),  # in too many places
        lambda: _piece(msgpack.packb([random.choice((True, -1)), random.choice((-1, True, 10**6)), 1, 0.1, {}])),
        lambda: _piece(b"\x95" + b"\x90" * random.choice((4, 5)) + bytes(random.choice((0, 300)))),
        lambda: _piece(b"\xdd\x00\x00\x80\x00" + b"\x90" * 0x8000),
        lambda: _piece(b"\x92\x00\xd9\xff" + bytes(20)),
        lambda: _piece(b"\x92\x00" + random.choice((b"\xc1", b"\xc7\x00\x01")) + bytes(20)),
        lambda: _piece(encode(random.choice((m.Done(_NOBODY, 0.1), m.Ready(1, None), m.Cancel(_NOBODY))), 0)),
        lambda: _piece(encode(random.choice((m.Ping(0.0), m.Pong(0.0), m.Ack(0))), 0)),
    ]
    return random.choice(kinds)()


def _packed(size: int) -> bytes:
    """A compressed piece of so many bytes."""
    data = zstandard.compress(bytes(size))
    return struct.pack("!BIIQ", 3, 0, len(data), 0) + data


def _welcome(random: Random) -> bytes:
    """What an agent says first, but of another version, or without the secret."""
    version = random.choice((VERSION, VERSION, VERSION - 1))
    return _piece(encode(m.Welcome(version, random.randbytes(16), random.randbytes(32), 0, {}), 0))


def _of_an_agent(random: Random) -> bytes:
    """What only agents say."""
    return _piece(
        encode(random.choice((m.Ready(1, None), m.Reply(_NOBODY, None), m.Ack(1))), random.choice((0, 10**6)))
    )


def _garbage(random: Random) -> bytes:
    return random.randbytes(random.choice((1, 8, 300)))


KINDS: tuple[Callable[[Random], bytes], ...] = (
    lambda _: b"",  # it says nothing
    _garbage,
    lambda _: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    lambda random: struct.pack("!BII", random.randrange(5), 0, 2**32 - 1),
    lambda random: _piece(_hello(random)),
    lambda random: _piece(_hello(random)) + _piece(encode(m.Proof(random.randbytes(32)), 0)),
    lambda random: _piece(_hello(random)) + _piece(encode(m.Ping(0.0), 0)),
    lambda _: _piece(encode(m.Hello(VERSION + 1, "of another version", b"x" * 16, 0), 0)),
    lambda random: _piece(_nonsense(random)),
    lambda random: _piece(_hello(random), random.choice((1, 2, 3)), (5, 2**40)),
    lambda random: _piece(_hello(random)[:-1]),
    _odd_piece,
)
"""What strangers say."""


def visit(world: World, machine: Machine, kind: int) -> None:
    """Let a stranger connect to a machine's agent, who does not know the secret; nobody may notice."""
    if (sock := _enter(machine)) is None:
        return
    data = KINDS[kind % len(KINDS)](world.random)
    cut = world.random.randrange(len(data) + 1)

    def say(part: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.send(part)

    say(data[:cut])
    if cut < len(data):
        world.after(world.random.choice((0.001, 1.0)), lambda: say(data[cut:]))
    world.after(world.random.choice((0.01, _LINGERS)) * world.random.random(), lambda: _leave(machine, sock))


def crowd(world: World, machine: Machine) -> None:
    """Let many strangers come at once, as somebody who scans for open doors."""
    for _ in range(_CROWD):
        visit(world, machine, 0)


def trespass(world: World, machine: Machine) -> None:
    """Let somebody connect who knows the secret, and yet is not the owner: a program that is run twice, or a fork."""
    if machine.agent is not None and machine.agent.session is not None:  # else whoever comes first is the owner
        _know(world, machine, "somebody else's", world.random.choice((b"", world.random.randbytes(16))))


def usurp(world: World, machine: Machine) -> None:
    """Let somebody who knows the secret come before the owner, and say what a node must not be told."""
    if machine.agent is not None and machine.agent.session is None:
        _know(world, machine, "a usurper's", b"", world.random.choice(_OF_USURPERS))


def join(world: World, machine: Machine) -> None:
    """Let somebody who knows the secret join the owner's link as if he were one of its stripes, or many."""
    session = machine.agent.session if machine.agent is not None else None
    if session is not None and session.link is not None:
        name = session.link.wire.name
        for _ in range(world.random.choice((1, 10))):
            said = world.random.choice(((), (), (m.Ping(0.0),), (b"\2" + bytes(16), b"\2" + bytes(16))))
            _know(world, machine, session.name, name, said)


def _know(world: World, machine: Machine, session: str, link: bytes, said: tuple[Any, ...] = ()) -> None:
    """Let somebody connect who knows the secret, and say something."""
    if (sock := _enter(machine)) is None:
        return
    wire = Wire(Role.OWNER, secret=SECRET, nonce=world.random.randbytes(16))
    wire.hello(session, 0, link)

    def go_on(steps: int) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            if wire.receive_data(sock.recv(64 * 1024)):
                wire.prove()
                pieces = (
                    each if isinstance(each, bytes) else _piece(encode(each, n)) for n, each in enumerate(said, 1)
                )
                wire._small += pieces
        with contextlib.suppress(OSError):
            sock.sendall(b"".join(wire.data_to_send()))
        if steps:
            world.after(world.random.choice((0.001, 0.5)), lambda: go_on(steps - 1))
        else:
            _leave(machine, sock)

    go_on(4)


def _enter(machine: Machine) -> socket.socket | None:
    try:
        sock = machine.connect()
    except OSError:
        return None
    sock.setblocking(False)
    machine.visitors.append(sock)
    return sock


def _leave(machine: Machine, sock: socket.socket) -> None:
    sock.close()
    if sock in machine.visitors:
        machine.visitors.remove(sock)


def bridge(world: World, machine: Machine) -> None:
    """Let a task say something to the agent's bridge that is no address."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(f"{machine.folder}/bridge.sock")
    except OSError:  # there are no slots
        sock.close()
        return
    machine.visitors.append(sock)
    with contextlib.suppress(OSError):
        sock.send(world.random.choice((b"", b"\0\0", b"\x7f\xff\xff\xff", frame(b"/nowhere"), frame(b"\xff\xfe"))))
    world.after(world.random.choice((0.01, _LINGERS)) * world.random.random(), lambda: _leave(machine, sock))


def impersonate(world: World, machine: Machine) -> None:
    """Let somebody else answer the next time that the driver connects to the agent."""
    kinds = (*KINDS, _welcome, _welcome, _odd_piece)
    machine.impostors.append(world.random.choice(kinds)(world.random))


def _of_blobs(machine: Machine) -> tuple[tuple[Any, ...], ...]:
    """What the driver never says about blobs that a node has; sometimes none."""
    slots = machine.agent.slots if machine.agent is not None else None
    if slots is None or machine.world.random.random() < 0.6:
        return ()
    if not (known := list(slots.needs.blobs.store._users)):
        # Where there is code, what was announced would be waited for.
        return ((m.Code(1, [b"no blob"]), b"names"),) if slots.needs._code is None else ()
    blob = machine.world.random.choice(known)
    # Its bytes are taken on trust from the driver, which has other ways to give a wrong result.
    return ((m.Fetch(blob, 5, "nobody"),), (m.Fetch(blob, 5, None),))


def command(world: World, session: Session, machine: Machine) -> None:
    """Let the driver say something to an agent that it never says, or not then."""
    link = session._link
    if world.random.random() < 0.4 and link is not None and link.wire.is_open:
        kinds = (lambda random: _piece(_nonsense(random)), _of_an_agent, _odd_command, _odd_command, _garbage)
        link.wire._small.append(world.random.choice(kinds)(world.random))
        link.flush()
    else:
        message, *buffers = world.random.choice(_of_blobs(machine) or _COMMANDS)
        session.send(message, buffers)


def lie(world: World, machine: Machine) -> None:
    """Let an agent say something to its owner that is not so, or that means nothing."""
    session = machine.agent.session if machine.agent is not None and machine.process.alive else None
    if session is None:
        return
    how, link = world.random.random(), session.link
    if how < 0.4 and link is not None and link.wire.is_open:
        kinds = (lambda random: _piece(_nonsense(random)), _odd_piece, _odd_piece, _garbage)
        link.wire._small.append(world.random.choice(kinds)(world.random))
        link.wake()
    elif how < 0.55 and link is not None and link.wire.is_open:
        kinds_of = (m.Pong(-1.0), m.Pong(1e12), m.Ack(_NOBODY), m.Ping(0.0), m.Ready(1, None))
        link.send(world.random.choice(kinds_of))
    elif how < 0.6 and link is not None and link.wire.is_open:
        with contextlib.suppress(ProtocolError):  # its own end of the link refuses that, and goes on
            session.post(*world.random.choice(_TOO_MUCH))
    elif how < 0.65 and machine.agent is not None and (slots := machine.agent.slots) is not None:
        machine.denies = True
        slots.inquire = lambda tasks: session.post(m.Missing(tasks))  # type: ignore[method-assign]
    else:
        message, *buffers = world.random.choice(_about(world.random, machine) or _LIES)
        session.post(message, buffers)


def _about(random: Random, machine: Machine) -> tuple[tuple[Any, ...], ...]:
    """Lies about a task that the agent really has; sometimes none."""
    slots = machine.agent.slots if machine.agent is not None else None
    if slots is None or not slots._tasks or random.random() < 0.5:
        return ()
    task = random.choice(list(slots._tasks))
    return (
        (m.Failed(task, 0.1, m.Failure.CANCELLED.value, "simulated: cancelled"),),
        (m.Failed(task, 0.1, m.Failure.RAISED.value, "int"), _NO_EXCEPTION),
        (m.Failed(task, 0.1, m.Failure.TIMEOUT.value, "simulated: too late"),),
        (m.Failed(task, 0.1, m.Failure.REFUSED.value, "simulated: it does not like it"),),
        (m.Done(task, 0.1, {5: b"/etc/passwd"}), b"x"),
        (m.Done(task, -1.0),),
        (m.Returned([task]),),
        (m.Missing([task]),),
        (m.Began([task], [_NOBODY]),),
    )


# What a driver never says to an agent that has slots.
_COMMANDS: tuple[tuple[Any, ...], ...] = (
    (m.Setup("", 1, True, None, {}, [], None, [], [], 60.0),),
    (m.Cancel(_NOBODY),),
    (m.Inquire([_NOBODY]),),
    (m.Recall(1, 0.0),),
    (m.Blob(b"no blob", 5, 0), b"01234"),
    (m.Fetch(b"no blob", 5, "nobody"),),
    (m.Fetch(b"no blob", 0, None),),
    (m.Share(b"no blob", "/nowhere", 1, 5),),
    (m.Peers({"nobody": [80, "192.0.2.7"]}),),
    (m.Forget([b"no blob"]),),
    (m.StreamData(_NOBODY), b"data"),
    (m.StreamClose(_NOBODY, "simulated: closed"),),
    (m.Ping(0.0),),
)
_SETUP = m.Setup("", 1, True, None, {}, [], None, [], [], 60.0)
_OF_USURPERS: tuple[tuple[Any, ...], ...] = (
    (),
    (m.Cancel(1),),
    (_SETUP._replace(concurrency=0),),
    (_SETUP._replace(concurrency=0, gpus=1.0), m.Cancel(1), m.Recall(1, 0.0)),
    (_SETUP, _SETUP),
    (_SETUP, m.Code(1, [])),
)
_TOO_MUCH: tuple[tuple[Any, list[bytes]], ...] = (
    (m.Output(1), [bytes(40_000)]),
    (m.Done(_NOBODY, 0.1), [b"x"] * 70_000),
)
_NO_EXCEPTION = pickle.dumps(([(pickle.dumps(5), "an error")], "an error\n", (-1, ""), []))
_LIES: tuple[tuple[Any, ...], ...] = (
    (m.Pong(0.0),),
    (m.Done(_NOBODY, 0.1), b"x"),
    (m.Done(1, float("nan")), b"x"),
    (m.Done(1, 0.1, {0: b"/etc/passwd"}), b"x"),
    (m.Failed(_NOBODY, 0.1, m.Failure.CRASHED.value, "never sent"),),
    (m.Failed(1, 0.1, "no such reason", ""),),
    (m.Began([_NOBODY, _NOBODY + 1], [1, 2]),),
    (m.Began([-1], [0]),),
    (m.Returned([_NOBODY]),),
    (m.Returned([]),),
    (m.Missing([_NOBODY]),),
    (m.Ready(3, None),),
    (m.Ready(-1, None),),
    (m.Ready(0, "simulated: it can't go on"),),
    (m.Kept(b"no blob", 5, None),),
    (m.Kept(b"no blob", 5, "simulated: lost"),),
    (m.Listening(80, ["192.0.2.7"]),),
    (m.Reached(["nobody"]),),
    (m.StreamOpen(_NOBODY, "/nowhere"),),
    (m.StreamData(_NOBODY), b"data"),
    (m.StreamClose(_NOBODY, None),),
    (m.Output(1), b"it printed\nhalf"),
    (m.Output(7), b"no such stream"),
    (m.Load(float("nan"), 1, 1, 1, 1),),
    (m.Load(0.5, 4, 1, 1, 1, [], "simulated: it can't see its GPUs"),),
    (m.Gpus([], "simulated: there are none"),),
)
