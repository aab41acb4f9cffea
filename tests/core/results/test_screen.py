"""What nodes of strangers say to listeners of this process: data pass, and nothing else."""

from __future__ import annotations

import os
import pickle
import struct
import threading
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.results.rules import RefusedPickle
from skyward.core.results.screen import Screen
from tests.core.results.hostile import Reduced

CHALLENGE, WELCOME = b"#CHALLENGE#" + bytes(20), b"#WELCOME#"
EVIL = pickle.dumps(Reduced(os.system, ("true",)))


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!i", len(message)) + message for message in messages)


def pickled(value: Any) -> bytes:
    return pickle.dumps(value)


def test_a_real_conversation_passes(tmp_path):
    """Client and listener of multiprocessing, with a screen between them."""
    got: list[Any] = []

    def relay(near: Connection, far: Connection) -> None:
        screen = Screen()

        def back() -> None:
            while data := os.read(far.fileno(), 65536):
                screen.from_listener(data)
                os.write(near.fileno(), data)

        threading.Thread(target=back, daemon=True).start()
        while data := os.read(near.fileno(), 7):
            for part in screen.from_node(data):
                os.write(far.fileno(), part)

    with Listener(str(tmp_path / "own"), authkey=b"k") as own, Listener(str(tmp_path / "middle")) as middle:

        def serve() -> None:
            with own.accept() as connection:
                got.append(connection.recv())
                connection.send(len(got[0]["rows"]))

        def carry() -> None:
            near = middle.accept()
            far = Client(str(tmp_path / "own"))  # only the socket: the ends prove themselves to each other
            relay(near, far)

        threads = [threading.Thread(target=target, daemon=True) for target in (serve, carry)]
        for thread in threads:
            thread.start()
        with Client(str(tmp_path / "middle"), authkey=b"k") as connection:
            connection.send({"rows": [(1, "a", 2.5)] * 1000})
            assert connection.recv() == 1000
        threads[0].join(30)
    assert got == [{"rows": [(1, "a", 2.5)] * 1000}]


def opened() -> Screen:
    screen = Screen()
    screen.from_listener(framed(CHALLENGE))
    list(screen.from_node(framed(bytes(32), CHALLENGE, WELCOME)))
    return screen


@given(st.lists(st.integers(1, 50)))
def test_messages_are_whole_however_they_are_cut(cuts):
    data = framed(pickled([1, "x"]), pickled({"a": 2.5}))
    screen, passed, rest = opened(), b"", data
    for cut in cuts:
        passed += b"".join(screen.from_node(rest[:cut]))
        rest = rest[cut:]
        assert data.startswith(passed)
    assert passed + b"".join(screen.from_node(rest)) == data


@pytest.mark.parametrize(
    "message",
    [
        EVIL,
        b"cos\nsystem\n.",
        b"\x80\x05\x8c\x08builtins\x8c\x04eval\x93.",
        b"no pickle",
        pickled(ValueError("x")),
        b"",
    ],
)
def test_what_is_no_data_is_refused(message):
    with pytest.raises(Exception):  # noqa: B017 - whichever
        list(opened().from_node(framed(pickled(1), message)))


def test_what_comes_before_a_refusal_is_heard():
    said = opened().from_node(framed(pickled(1), EVIL))
    assert next(said) + next(said) == framed(pickled(1))
    with pytest.raises(RefusedPickle):
        next(said)


def test_a_listener_without_a_key_is_sent_no_proof():
    """It would unpickle it."""
    proof = b"cos\nabort\n)R."
    with pytest.raises(RefusedPickle):
        list(Screen().from_node(framed(proof)))
    screen = Screen()
    screen.from_listener(framed(pickled("hello")))
    with pytest.raises(RefusedPickle):
        list(screen.from_node(framed(proof)))


def test_the_proof_is_three_messages_of_its_kind():
    for messages in (
        [bytes(32), EVIL],
        [bytes(32), CHALLENGE, EVIL],
        [bytes(300)],
        [bytes(32), CHALLENGE, WELCOME, EVIL],
    ):
        screen = Screen()
        screen.from_listener(framed(CHALLENGE))
        with pytest.raises(RefusedPickle):
            list(screen.from_node(framed(*messages)))


def test_sizes_that_are_none_are_refused_before_anything_waits_for_them():
    for header in (struct.pack("!i", -7), struct.pack("!iQ", -1, 1 << 62), struct.pack("!i", 1 << 30)):
        with pytest.raises(RefusedPickle, match="bytes"):
            list(opened().from_node(header))
