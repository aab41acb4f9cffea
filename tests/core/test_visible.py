"""What others say is harmless where it is shown."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.visible import in_html, in_json, printed, shown

ESC = "\x1b"
BAD = f"{ESC}]0;owned\x07{ESC}[2Jname\r\u202e\x9b1A"


@given(st.text())
def test_nothing_that_is_shown_moves_a_cursor(text):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", shown(text))
    assert shown(text, lines=False).splitlines() in ([], [shown(text, lines=False)])
    shown(text).encode()
    assert shown(shown(text)) == shown(text)


@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_what_is_harmless_stays(text):
    assert shown(text) == printed(text) == in_json(text) == text
    assert shown(f"{text}\n\t{text}") == f"{text}\n\t{text}"


def test_what_was_meant_can_be_read():
    assert shown(BAD) == r"\x1b]0;owned\x07\x1b[2Jname\r\u202e\x9b1A"
    assert shown("a\nb", lines=False) == r"a\nb"


@given(st.text())
def test_json_stays_json(text):
    data = in_json(json.dumps({"name": text}, ensure_ascii=False, indent=2))
    assert json.loads(data) == {"name": text}
    assert not re.search(r"[\x7f-\x9f\u202e]", data)


# --- printed ---


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"{ESC}[31mred{ESC}[0m\n", f"{ESC}[31mred{ESC}[0m\n"),
        (f"{ESC}[1;38:5:208mred\n", f"{ESC}[1;38:5:208mred{ESC}[0m\n"),
        (f"{ESC}[31mred\nmore", f"{ESC}[31mred\nmore{ESC}[0m"),
        ("50%\r60%\t\n", "50%\r60%\t\n"),
        (f"{ESC}[2Ja{ESC}[1;1Hb{ESC}[?1049hc", "abc"),
        (f"{ESC}]0;title\x07a{ESC}]0;title{ESC}\\b\x9d0;title\x9cc", "abc"),
        (f"{ESC}]0;never ends\nnext", "\nnext"),
        (f"{ESC}P+q544e{ESC}\\a{ESC}_x{ESC}\\b", "ab"),
        (f"a{ESC}cb{ESC}(0c{ESC}7d{ESC}", "abcd"),
        (f"a{ESC}", "a"),
        ("a\x08b\x07c\x00d\x7fe\x9b2Jf\x0cg", "abcdefg"),
        (f"{ESC}{ESC}[31mx", f"{ESC}[31mx{ESC}[0m"),
        ("half a \ud800 character", "half a  character"),  # no stream takes it
        (f"{ESC}[31;?mx", "x"),
        (f"{ESC}[{'1;' * 100}mx", "x"),
        (f"{ESC}]8;;http://x{ESC}\\link{ESC}]8;;{ESC}\\", "link"),
    ],
)
def test_what_is_printed_keeps_its_colours(text, left):
    assert printed(text) == left


@given(st.text(st.sampled_from(f"{ESC}[]mHJ0123;?x\n\r\x07\x9b\\P")))
def test_nothing_is_left_but_colours(text):
    rest = re.sub(rf"{ESC}\[[0-9;:]*m", "", printed(text))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", rest)
    assert printed(text).count("\n") == text.count("\n")


@given(st.text())
def test_html_is_escaped_as_the_standard_library_does(written):
    assert in_html(written) == html.escape(shown(written))
    assert in_html(written, lines=False) == html.escape(shown(written, lines=False))
