"""Tables of words: columns that fit, no markup of others, and of many rows the first."""

from __future__ import annotations

from skyward.core.tables import html_table, text_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(("a", "bcd"), [["1", "2"], ["333", ""]]) == ["a    bcd", "1    2", "333"]


def test_without_rows_there_is_no_table() -> None:
    assert (text_table(("a",), []), html_table(("a",), [])) == ([], "")


def test_cells_are_text() -> None:
    assert "<td>&lt;b&gt;</td>" in html_table(("a",), [["<b>"]])


def test_of_many_rows_the_first_are_shown() -> None:
    rows = [[str(number)] for number in range(100)]
    assert text_table(("n",), rows)[-2:] == ["29", "and 70 more"]
    assert html_table(("n",), rows).endswith("</table>and 70 more")
