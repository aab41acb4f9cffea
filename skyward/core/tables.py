"""Tables as text and as HTML, for terminals and notebooks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from skyward.core.visible import in_html

__all__ = ["html_table", "text_table"]

_MAX_ROWS = 30


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; of many rows only the first 30. Empty if there are no rows.

    Parameters
    ----------
    head, rows
        Names of the columns, and their cells.
    """
    if not rows:
        return []
    some = [head, *rows[:_MAX_ROWS]]
    widths = [max(len(row[column]) for row in some) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in some]
    return [*lines, *([f"and {len(rows) - _MAX_ROWS} more"] if len(rows) > _MAX_ROWS else [])]


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML; empty if there are no rows. Cells are text.

    Parameters
    ----------
    head, rows
        Names of the columns, and their cells.
    """
    if not rows:
        return ""
    names = "".join(f"<th>{in_html(name)}</th>" for name in head)
    cells = ("".join(f"<td>{in_html(cell, lines=False)}</td>" for cell in row) for row in rows[:_MAX_ROWS])
    more = f"and {len(rows) - _MAX_ROWS} more" if len(rows) > _MAX_ROWS else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>{more}"
