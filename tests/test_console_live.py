"""The live line, drawn on a terminal of a fixed width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from skyward.console_live import LiveLine, _Above


def drawn(width: int, text: str) -> str:
    line = LiveLine(io.StringIO(), lambda: text)
    file = io.StringIO()
    RichConsole(file=file, force_terminal=True, width=width, color_system="standard", no_color=False).print(
        line._render()
    )
    return file.getvalue()


def test_a_narrow_terminal_crops_the_line_and_never_wraps_it() -> None:
    shown = drawn(20, "skyward local: nodes 10/10 | slots 100/100 busy")
    assert shown.count("\n") == 1
    assert "nodes" not in shown.partition("skyward")[2][16:]
    assert "skyward" in shown


def test_failures_are_red() -> None:
    assert "\x1b[31m3 failed\x1b[0m" in drawn(100, "skyward local: tasks 7/9 | 3 failed")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_above_the_line_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lines are not broken, markup is not read, escape sequences pass."""
    monkeypatch.setenv("COLUMNS", "30")
    file = Terminal()
    above = _Above(file, RichConsole(file=file, force_terminal=True, width=30))
    text = "x" * 100 + " [bold]no markup[/bold] \x1b[35mcolour\x1b[0m\ttab"
    above.write(text + "\n")
    assert file.getvalue() == text + "\n"


def test_an_unfinished_line_waits_and_is_not_lost() -> None:
    file = Terminal()
    above = _Above(file, RichConsole(file=file, force_terminal=True, width=80))
    above.write(" 10%")
    above.write("\r 20%")
    assert (file.getvalue(), above.tail) == ("", " 20%")
    above.write_lines("[node-1] between\n")
    assert file.getvalue() == "[node-1] between\n"
    above.write("\nrest")
    assert file.getvalue() == "[node-1] between\n 10%\r 20%\n"
    above.pause()
    assert file.getvalue().endswith("rest")
    above.write("later")
    assert file.getvalue().endswith("restlater")
    above.resume(RichConsole(file=file, force_terminal=True, width=80))
    above.write(" pending")
    assert (file.getvalue().endswith("restlater"), above.tail) == (True, " pending")
