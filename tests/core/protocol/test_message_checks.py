"""What can't be meant is refused at the door, whatever it is, and what our own parts say is not."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol import messages as m
from skyward.core.protocol.message_checks import is_sound
from skyward.core.protocol.wire import Role, Wire

GOOD: list[tuple[m.Message, int]] = [
    (m.Done(1, 0.0), 1),
    (m.Done(1, 1, {0: b"/f", 2: b"/g"}), 2),
    (m.Failed(1, 0.5, "crashed", "exit status 3"), 0),
    (m.Failed(1, 0.5, "raised", ""), 1),
    (m.Ready(2, None), 0),
    (m.Ready(0, "no room"), 0),
    (m.Output(2), 1),
    (m.Returned([]), 0),
    (m.Pong(0.5), 0),
    (m.Listening(1, ["10.0.0.1"]), 0),
    (m.Kept(b"d", 0, "gone"), 0),
    (m.Done(1, 0.0, {}, 4), 1),
    (m.Gpus([["GPU-1", "T4", 2**34, None, 0.5]], None), 0),
    (m.Load(0.5, 4, 1, 2, 3, [["GPU-1", "T4", None, None, None]], "x"), 0),
    (m.Load(None, None, None, None, None), 0),
]

BAD: list[tuple[m.Message, int]] = [
    (m.Done(1, math.nan), 1),
    (m.Done(1, math.inf), 1),
    (m.Done(1, -1.0), 1),
    (m.Done(-1, 0.1), 1),
    (m.Done(1, 0.1), 0),
    (m.Done(1, 0.1, {5: b"/f"}), 1),
    (m.Done(1, 0.1, {-1: b"/f"}), 1),
    (m.Done(1, 0.1, {"0": b"/f"}), 1),  # type: ignore[dict-item]
    (m.Done(1, 0.1, {0: "/f"}), 1),  # type: ignore[dict-item]
    (m.Failed(1, 0.1, "no-such", ""), 0),
    (m.Failed(1, math.nan, "crashed", ""), 0),
    (m.Failed(1, 0.1, "raised", ""), 0),
    (m.Ready(0, None), 0),
    (m.Ready(-3, None), 0),
    (m.Ready(2**40, None), 0),
    (m.Output(3), 1),
    (m.Output(1), 0),
    (m.Returned([None]), 0),  # type: ignore[list-item]
    (m.Returned([-1]), 0),
    (m.Pong(math.nan), 0),
    (m.Ack(-1), 0),
    (m.Listening(0, []), 0),
    (m.Listening(22, [5]), 0),  # type: ignore[list-item]
    (m.Reached([b"x"]), 0),  # type: ignore[list-item]
    (m.Kept(b"d", -5, None), 0),
    (m.StreamData(1), 2),
    (m.Done(1, 0.1, {}, -1), 1),
    (m.Failed(1, 0.1, "crashed", "", "", 1 << 20), 0),
    (m.Gpus([["GPU-1", "T4", 2**34, None]], None), 0),
    (m.Gpus([["GPU-1", "T4", -1, None, None]], None), 0),
    (m.Gpus([["GPU-1", b"T4", 1, None, None]], None), 0),
    (m.Gpus([["GPU-1", "T4", 1, None, 1.5]], None), 0),
    (m.Gpus([["x" * 2000, "", 1, 1, 1]], None), 0),
    (m.Load(math.nan, 1, 1, 1, 1), 0),
    (m.Load(2.0, 1, 1, 1, 1), 0),
    (m.Load(0.5, 1, -1, 1, 1), 0),
    (m.Load(0.5, 1, 1, 1, 1, [["GPU-1"]]), 0),
    (m.Gpus(["T4"], None), 0),  # type: ignore[list-item]
    (m.Welcome(1, b"", b"", 0, {"memory": "much"}), 0),
    (m.Welcome(1, b"", b"", -1, {}), 0),
]


@pytest.mark.parametrize(("message", "buffers"), GOOD)
def test_what_can_be_meant_is_sound(message: m.Message, buffers: int) -> None:
    assert is_sound(message, buffers)


@pytest.mark.parametrize(("message", "buffers"), BAD)
def test_what_can_not_be_meant_is_not(message: m.Message, buffers: int) -> None:
    assert not is_sound(message, buffers)


def test_the_wire_refuses_it_and_says_what_it_was() -> None:
    """On the node's word; the link is of no further use."""
    node, owner = Wire.opened(Role.AGENT), Wire.opened(Role.OWNER)
    node.send(m.Failed(7, 0.1, "no-such", "x"), [], 1)
    with pytest.raises(ProtocolError, match=r"not a sensible Failed: \[7, 0.1, 'no-such', 'x', '', 0\]"):
        owner.receive_data(b"".join(node.data_to_send()))
    with pytest.raises(ProtocolError):
        owner.receive_data(b"")


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=2), inner, max_size=3),
    max_leaves=4,
)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats() | st.integers(-5, 5),
    str: st.text(max_size=5) | st.sampled_from([reason.value for reason in m.Failure]),
    bytes: st.binary(max_size=5),
    bool: st.booleans(),
    list: st.lists(ANY, max_size=3),
    dict: st.dictionaries(st.integers() | st.text(max_size=2), ANY, max_size=3),
    type(None): st.none(),
}


def _of_hint(hint: Any) -> st.SearchStrategy[Any]:
    parts = [part for part in getattr(hint, "__args__", ()) if part is type(None)]
    kinds = hint.__args__ if parts else (hint,)
    return st.one_of(*(OF_TYPE[getattr(kind, "__origin__", kind)] for kind in kinds))


@given(data=st.data(), kind=st.sampled_from(m.MESSAGES), buffers=st.integers(0, 3))
def test_whatever_has_the_right_types_is_judged_without_an_error(
    data: st.DataObject, kind: type[Any], buffers: int
) -> None:
    message = kind(*(data.draw(_of_hint(hint)) for hint in get_type_hints(kind).values()))
    if is_sound(message, buffers) and isinstance(message, (m.Done, m.Failed)):
        assert math.isfinite(message.seconds)
        assert msgpack.packb(message.task) is not None
