"""What is sent ahead is loaded first, and leaves no trace in the call."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from skyward.core.errors import PayloadError
from skyward.core.payload import pickling
from skyward.core.payload.forerunners import FORERUNNERS, Preceded, preceded

seen: list[str] = []


def note(text: str) -> str:
    seen.append(text)
    return text


class Noted:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return note, (self.text,)


def test_it_is_loaded_before_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    call = (abs, (Noted("call"),), {})
    assert preceded(call, None) is call or FORERUNNERS
    monkeypatch.setattr("skyward.core.payload.forerunners.FORERUNNERS", [Noted, lambda _: None])
    sent = preceded(call, "first")
    assert isinstance(sent, Preceded)
    seen.clear()
    assert pickling.loads(*pickling.dumps(sent)) == (abs, ("call",), {})
    assert seen == ["first", "call"]
    with pytest.raises(PayloadError, match=r"the call\[1\]\[0\] \(a _thread.lock\)"):
        pickling.dumps(preceded((abs, (threading.Lock(),), {}), "first"), "the call")
