"""Short texts and HTML tables for objects that are printed in a terminal or shown in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Protocol

MOST_LINES = 12  # of a repr
MOST_ROWS = 60  # of an HTML table
WIDTH = 140  # characters of a line of a repr


class Figures(Protocol):
    """The figures of a solution that tables and pictures show."""

    @property
    def values(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def flops(self) -> int: ...  # noqa: D102
    @property
    def params(self) -> int: ...  # noqa: D102


class FrontFigures(Protocol):
    """The figures of a front that tables and pictures show."""

    @property
    def weights(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def dense(self) -> Mapping[str, Any]: ...  # noqa: D102
    def __iter__(self) -> Iterator[Figures]: ...


def short(lines: Sequence[str], whole: str) -> str:
    """The first lines of a text, so that it has at most 12 lines of at most 140 characters.

    Args:
        lines: All lines of the text.
        whole: Call that prints the whole text, such as ``print(space)``.
    """
    if len(lines) > MOST_LINES:
        first = MOST_LINES - 1
        lines = [*lines[:first], f"  ... {len(lines) - first} more lines: {whole}"]
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..." for line in lines)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column aligned on the left, the others on the right.

    Args:
        columns: Names of the columns.
        rows: Cells of each row.
    """
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for notebooks, of at most 60 rows; texts are escaped.

    Args:
        caption: Text above the table.
        columns: Names of the columns.
        rows: Cells of each row.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    shown = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows[:MOST_ROWS])
    hidden = len(rows) - MOST_ROWS
    more = f"<p>... {hidden} more rows</p>" if hidden > 0 else ""
    return f"<p>{escape(caption)}</p><table><thead><tr>{head}</tr></thead><tbody>{shown}</tbody></table>{more}"
