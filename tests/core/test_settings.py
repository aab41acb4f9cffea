"""Variables reach tasks by name only, and a name that means nothing is an error."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.settings import parse_lines, read

VARIABLES = {"CHURN_URL": "u", "CHURN_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/root", "CHURNED": "x"}


def test_names_and_patterns() -> None:
    assert read(["CHURN_*"], VARIABLES) == {"CHURN_URL": "u", "CHURN_KEY": "k"}
    assert read(["HOME", "CHURN?URL"], VARIABLES) == {"HOME": "/root", "CHURN_URL": "u"}
    assert read([], VARIABLES) == {}


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("CHURN_ULR", "whose name is 'CHURN_ULR'; the nearest is 'CHURN_URL'"),
        ("CHURM_*", "that matches 'CHURM_\\*'; the nearest is 'CHURN_URL'"),
        ("QQQ", "whose name is 'QQQ'$"),
        ("*", "neither a name"),
        ("*_KEY", "neither a name"),
        ("", "neither a name"),
        ("A=b", "neither a name"),
        ("churn_url", "no variable"),
    ],
)
def test_what_names_nothing_is_an_error(item: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read([item], VARIABLES)


def test_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("A=1\nB=2\n")
    Path("prod.env").write_text("B=3\n")
    assert read([".env", "prod.env"], {}) == {"A": "1", "B": "3"}
    assert read([str(tmp_path / ".env"), "./prod.env"], {}) == {"A": "1", "B": "3"}
    with pytest.raises(ConfigError, match=r"no file 'prd.env' in .*; the nearest is 'prod.env'"):
        read(["prd.env"], {})
    Path("latin.env").write_bytes(b"A=\xe4\n")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        read(["latin.env"], {})
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        read(["./"], {})


LINES = r"""
# a comment
A=1
 export B = two words # and a comment
C='single # $kept \n'
D="double \"quoted\" \$x\n\\" # a comment
E=
F=""
URL=postgres://u:p@host/db?x=1#frag
G=#nothing
"""


def test_what_every_reader_takes_for_the_same() -> None:
    assert parse_lines(LINES, ".env") == {
        "A": "1", "B": "two words", "C": "single # $kept \\n", "D": 'double "quoted" $x\n\\', "E": "", "F": "",
        "URL": "postgres://u:p@host/db?x=1#frag", "G": "",
    }  # fmt: skip
    assert parse_lines("\ufeffA=1\r\nB=2\r\n", "x") == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("secret", "line 2: not NAME=value"),
        ("1A=secret", "line 2: not NAME=value"),
        ('A="secret', "line 2: A: quotes that don't match"),
        ("A='secret\" x", "line 2: A: quotes that don't match"),
        ("A=secret's", "line 2: A: quotes that don't match"),
        ("A=$secret", "line 2: A: it refers to another variable"),
        ('A="${secret}"', "line 2: A: it refers to another variable"),
        (r'A="secret\q"', r"line 2: A: \\q is not an escape sequence"),
    ],
)
def test_anything_else_is_an_error_that_shows_no_value(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_lines(f"OK=1\n{line}\n", ".env")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_lines(text, ".env")
    except ConfigError:
        return
    assert all(isinstance(value, str) for value in found.values())


@given(st.text(st.characters(exclude_categories=("C", "Z")), max_size=20))
def test_a_value_that_is_quoted_comes_back(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    assert parse_lines(f'A="{quoted}"', ".env") == {"A": value}


def test_an_image_knows_them_and_does_not_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_URL", "secret1")
    (tmp_path / ".env").write_text("CHURN_KEY=secret2\nOTHER=file\n")
    image = Image(env_from=["CHURN_*", f"{tmp_path}/.env"], env={"OTHER": "told"})
    assert image.task_env == {"CHURN_URL": "secret1", "CHURN_KEY": "secret2", "OTHER": "told"}
    assert image.env == {"OTHER": "told"}
    assert "secret" not in repr(image)
    assert replace(image, pip=["numpy"]).task_env == image.task_env
    with pytest.raises(ConfigError, match="not a list of strings"):
        Image(env_from="CHURN_*")
    assert Image().task_env == {}
    assert "HOME" in os.environ
