"""Statements as descriptions, and the SQL of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Value = str | int | float
Figure = Literal["COUNT", "AVG", "SUM", "MAX", "MIN"]
Sign = Literal["=", "<>", "<", ">", "<=", ">=", "IS NULL", "BETWEEN"]


@dataclass(frozen=True)
class Condition:
    """What a row has to be."""

    column: str
    sign: Sign
    value: Value = ""
    upper: Value = ""
    """The upper end, of a condition with two ends."""

    def to_sql(self) -> str:
        """Return it as it stands after WHERE."""
        if self.sign == "IS NULL":
            return f"{self.column} IS NULL"
        written = f"{self.column} {self.sign} {_quote(self.value)}"
        return f"{written} AND {_quote(self.upper)}" if self.sign == "BETWEEN" else written


@dataclass(frozen=True)
class Statement:
    """One SELECT of one table."""

    table: str
    columns: tuple[str, ...] = ()
    """None of them stands for all."""
    figure: Figure | None = None
    """What is worked out of `of`, or of rows, for each `by` if there is one."""
    of: str = "*"
    by: str | None = None
    distinct: bool = False
    conditions: tuple[Condition, ...] = ()
    order: str | None = None
    descending: bool = False
    limit: int | None = None

    def to_sql(self) -> str:
        """Return it in SQL, on one line."""
        parts = [f"SELECT {self._selection()} FROM {self.table}"]
        if self.conditions:
            parts.append(f"WHERE {' AND '.join(c.to_sql() for c in self.conditions)}")
        if self.by:
            parts.append(f"GROUP BY {self.by}")
        if self.order:
            parts.append(f"ORDER BY {self.order}{' DESC' * self.descending}")
        if self.limit:
            parts.append(f"LIMIT {self.limit}")
        return f"{' '.join(parts)};"

    def _selection(self) -> str:
        if self.figure:
            return f"{f'{self.by}, ' if self.by else ''}{self.figure}({self.of})"
        return f"{'DISTINCT ' * self.distinct}{', '.join(self.columns) or '*'}"


def _quote(value: Value) -> str:
    return "'{}'".format(value.replace("'", "''")) if isinstance(value, str) else str(value)
