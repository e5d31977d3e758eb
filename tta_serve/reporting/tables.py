"""Tables of reports, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    """Its heading."""
    columns: tuple[str, ...]
    """The headings of its columns."""
    rows: Sequence[tuple[str, ...]]
    """Its cells, row by row."""
    notes: str = ""
    """What its figures mean."""

    def to_markdown(self) -> str:
        """Return a section of Markdown with the table in it."""
        cells = (self.columns, ["---"] * len(self.columns), *self.rows)
        lines = [f"## {self.title}", "", *map(_line, cells)]
        if self.notes:
            lines += ["", self.notes]
        return "\n".join(lines)

    def to_table(self) -> Table:
        """Return the table for a terminal."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
