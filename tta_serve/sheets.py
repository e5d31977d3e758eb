"""Tables of reports, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """One table. notes: what its figures mean"""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: str = ""

    def markdown(self) -> str:
        """A section with the table in it."""
        lines = [f"## {self.title}", "", *map(_line, (self.columns, ["---"] * len(self.columns), *self.rows))]
        return "\n".join([*lines, *(["", self.notes] if self.notes else [])])

    def table(self) -> Table:
        """For a terminal."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
