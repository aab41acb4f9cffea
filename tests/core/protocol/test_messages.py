"""The tables of messages are complete, and field types are those of the annotations."""

from __future__ import annotations

from typing import Any

from skyward.core.protocol import messages
from skyward.core.protocol.messages import CODES, FIELDS, MESSAGES, ORDERED


def fields(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    return dict(zip(kind._fields, FIELDS[CODES[kind]], strict=True))


def test_every_message_has_a_code_of_its_own_and_is_public() -> None:
    assert sorted(CODES.values()) == list(range(len(MESSAGES)))
    kinds = {item for item in vars(messages).values() if isinstance(item, type) and hasattr(item, "_fields")}
    assert kinds == set(MESSAGES)
    assert {kind.__name__ for kind in MESSAGES} <= set(messages.__all__)
    assert set(MESSAGES) >= ORDERED


def test_fields_accept_what_their_annotations_say() -> None:
    assert fields(messages.Run) == {
        "task": (int,),
        "isolated": (bool,),
        "timeout": (float, type(None), int),
        "threads": (int, type(None)),
        "blobs": (dict,),
        "authkey": (bytes,),
        "code": (int,),
        "since": (int,),
    }
    assert fields(messages.Ping) == {"stamp": (float, int)}
    assert fields(messages.Returned) == {"tasks": (list,)}
