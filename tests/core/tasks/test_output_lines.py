"""Lines that arrive in several messages are reported whole."""

from __future__ import annotations

import pytest

from skyward.core.events import Event, Events, Printed
from skyward.core.protocol.messages import Output
from skyward.core.tasks import output_lines
from skyward.core.tasks.output_lines import OutputLines


def test_a_line_in_pieces_is_one_line_of_its_stream() -> None:
    heard: list[Event] = []
    events = Events()
    events.subscribe(heard.append)
    lines = OutputLines("n1", events)
    lines.received(Output(1, more=True), [bytearray(b"be")])
    lines.received(Output(2), [bytearray(b"other\n")])
    lines.received(Output(1, more=True), [bytearray(b"gi")])
    assert heard == [Printed("n1", 2, "other\n")]
    lines.received(Output(1), [bytearray(b"n\n")])
    lines.received(Output(1), [bytearray(b"\xff\n")])
    assert heard[1:] == [Printed("n1", 1, "begin\n"), Printed("n1", 1, "\\xff\n")]


def test_a_line_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lines, "_MAX_LINE", 10)
    heard: list[Event] = []
    events = Events()
    events.subscribe(heard.append)
    lines = OutputLines("n1", events)
    for _ in range(5):
        lines.received(Output(1, more=True), [bytearray(b"1234")])
    assert heard == [Printed("n1", 1, "1234" * 3)]
