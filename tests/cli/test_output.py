"""How commands speak of what clouds say."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from skyward.cli import output

BAD = "\x1b]0;owned\x07\x1b[2Jname\x9b1A"


@pytest.mark.parametrize(
    "speak",
    [output.say, output.print_line, output.as_json, lambda bad: output.table(["a"], [[bad, "b\nc"]])],
    ids=["say", "tell", "json", "table"],
)
def test_nothing_that_a_cloud_says_reaches_the_terminal_raw(
    speak: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    speak(BAD)
    said = "".join(capsys.readouterr())
    assert "name" in said
    assert not set(said) & set("\x1b\x07\x9b")


def test_json_keeps_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    output.as_json({"name": BAD})
    assert json.loads(capsys.readouterr().out) == {"name": BAD}


def test_a_cell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["a", "b"], [["x\ny", "z"]])
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == [r"x\ny", "z"]
