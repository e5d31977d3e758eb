"""Somebody who speaks of a table: what that person says for columns, values, conditions, orders."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.demo.tasks.sql.statements import Condition, Value
from deploy.demo.tasks.sql.tables import Column, Table, plural
from deploy.demo.tasks.sql.values import NUMBERS, draw_value
from deploy.demo.tasks.task import Split, fill
from deploy.demo.tasks.wording import read_wording

WORDING = read_wording("sql")

# The most and the least that a column of a kind has.
_ENDS = {
    "number": (("highest", "lowest"), ("biggest", "smallest"), ("largest", "smallest")),
    "year": (("latest", "earliest"), ("most recent", "oldest")),
    "date": (("latest", "earliest"), ("newest", "oldest"), ("most recent", "earliest")),
}
_OPERATIONS = {
    ">": "over",
    "<": "under",
    ">=": "at_least",
    "<=": "at_most",
    "=": "equals",
    "<>": "differs",
    "BETWEEN": "between",
}
_DATED = {">": "after_date", "<": "before_date"}
# Kinds of columns, and whether the condition is that something is equal, of which a table that has
# only one needs no name for it.
_SOLE = {("text", True), ("number", False)}
_LONG = re.compile(r"(?<![{\w])[a-z]{5,}(?![\w}])")
_FIGURES = {"AVG": "average", "SUM": "total"}


@dataclass(frozen=True)
class Speaker:
    """One person with one table."""

    rng: random.Random
    split: Split
    table: Table
    casual: bool
    """Whether words are written without capitals."""
    quoting: bool
    """Whether values of text are put in quotes."""
    hasty: bool = False
    """Whether words are mistyped."""

    def chance(self, share: float) -> bool:
        """Whether something happens this time."""
        return self.rng.random() < share

    def say(self, kind: str, **fields: object) -> str:
        """Say something of a kind that has all of the fields' places, or some of them."""
        return self.word(self.rng.choice(WORDING[kind][self.split]), **fields)

    def word(self, template: str, **fields: object) -> str:
        """Fill a template as this person would write it."""
        template = template.lower() if self.casual else template
        return fill(self.rng, self._mistype(template) if self.hasty else template, **fields)

    def _mistype(self, template: str) -> str:
        """Swap two letters in some of a template's longer words, none of them a place."""
        return _LONG.sub(lambda found: self._swap(found[0]), template)

    def _swap(self, word: str) -> str:
        at = self.rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :] if self.chance(0.1) else word

    def call(self, column: Column, *, many: bool = False) -> str:
        """Return what this person says for a column."""
        said = self.table.only(column.said)
        word = self.rng.choice(said) if said and self.chance(0.45) else column.name
        return plural(word) if many and word.isalpha() and word.islower() else word

    def list_columns(self, columns: Sequence[Column]) -> str:
        """Say which columns are wanted; none means all of them."""
        if not columns:
            return self.say("everything")
        many = self.chance(0.3)
        texts = [self.call(c, many=many and c.kind == "text") for c in columns]
        *first, last = texts
        joined = self.rng.choice((" and ", " and ", " and ", ", ", " + ", " & ", " plus "))
        listed = joined.join([", ".join(first), last]) if first else last
        return self.say("columns", list=listed)

    def write(self, value: Value, column: Column) -> str:
        """Write a value, sometimes after another one that was wrong."""
        written = self._write(value)
        if not self.chance(0.03) or column.kind == "flag":
            return written
        old = draw_value(self.rng, self.split, column)
        return (
            written
            if old == value or type(old) is not type(value)
            else self.say("corrected", old=self._write(old), v=written)
        )

    def _write(self, value: Value) -> str:
        if isinstance(value, str):
            return f"'{value}'" if self.quoting else value
        return NUMBERS[value] if value in NUMBERS and self.chance(0.12) else str(value)

    def condition(self, condition: Condition, column: Column) -> tuple[str, str]:
        """Say a condition as it follows a noun, and as it stands by itself."""
        if condition.sign == "IS NULL":
            said = self._null(column)
            return said, said.removeprefix("where ")
        value = self.write(condition.value, column)
        own = self._without_name(condition, column, value)
        whose, cond = self._compared(condition, column, value)
        if own and self.chance(0.45):
            whose = self.rng.choice(own)
        elif column.kind == "text" and condition.sign == "=" and self.chance(0.3):
            whose = self.say("whose_text", c=self.call(column), v=value)
        return whose, cond

    def _without_name(self, condition: Condition, column: Column, value: str) -> list[str]:
        """Say a condition in ways that need no name of a column to be clear."""
        kept = {"=": column.equal, ">": column.over, "<": column.under}.get(condition.sign, ())
        said = [self.word(phrase, v=value) for phrase in self.table.only(kept)]
        sole = {"=": "text", ">": "over", "<": "under"}.get(condition.sign)
        alike = [c for c in self.table.among(column.kind) if c.values or c.kind == "number"]
        if sole and len(alike) == 1 and (column.kind, sole == "text") in _SOLE:
            said.append(self.say(f"sole_{sole}", v=value))
        return said

    def _compared(self, condition: Condition, column: Column, value: str) -> tuple[str, str]:
        """Say a condition with the column's name in it."""
        called, upper = self.call(column), self._write(condition.upper)
        if condition.sign != "BETWEEN" and self.chance(0.2):
            sign = "!=" if condition.sign == "<>" and self.chance(0.5) else condition.sign
            return (
                self.say("signs", c=called, sign=sign, v=value),
                self.say("cond_signs", c=called, sign=sign, v=value),
            )
        operation = _OPERATIONS[condition.sign]
        if column.kind in ("year", "date"):
            operation = _DATED.get(condition.sign, operation)
        op = self.say(operation, v=value, w=upper)
        countable = column.kind == "number" and called.endswith("s") and condition.sign != "<>"
        form = "_many" if countable and self.chance(0.6) else ""
        return self.say(f"whose{form}", c=called, op=op), self.say(f"cond{form}", c=called, op=op)

    def _null(self, column: Column) -> str:
        own = self.table.only(column.null)
        if own and self.chance(0.4):
            return f"{self.rng.choice(own)} ({column.name} is NULL)"
        return self.say("null", c=self.call(column))

    def order(self, column: Column, *, descending: bool) -> str:
        """Say in which order rows come."""
        if not column.ordered:
            return self.say("alphabetical", c=self.call(column))
        most, least = self.table.only(column.most), self.table.only(column.least)
        way = "descending" if descending else "ascending"
        if most and least and self.chance(0.12):
            a, b = self.rng.choice(most), self.rng.choice(least)
            return self.say("both_super", a=a if descending else b, b=b if descending else a)
        if (most if descending else least) and self.chance(0.5):
            words = {"most": self.rng.choice(most or [""]), "least": self.rng.choice(least or [""])}
            return self.say(f"{way}_super", **words)
        high, low = self.rng.choice(_ENDS[column.kind])
        return self.say(way, c=self.call(column), high=high, low=low)

    def best(self, column: Column, n: int, *, descending: bool) -> str:
        """Say which rows are the first of an order."""
        own = self.table.only(column.most if descending else column.least)
        fields = {
            "n": self.count(n),
            "things": self.table.things,
            "thing": self.table.thing,
            "c": self.call(column),
            "extreme": self.rng.choice(_ENDS[column.kind])[not descending],
            "super": self.rng.choice(own or [""]),
        }
        form = "best_single" if n == 1 else "best"
        if own and self.chance(0.6):
            return self.say(f"{form}_super", **fields)
        if n > 1 and descending and column.kind == "number" and self.chance(0.4):
            form = "best_top"
        return self.say(form, **fields)

    def count(self, n: int) -> str:
        """Write a small number, as a word or in digits."""
        return NUMBERS[n] if n in NUMBERS and self.chance(0.45) else str(n)

    def figure(self, figure: str, column: Column) -> str:
        """Say what is worked out of a column."""
        called = self.call(column)
        fields = {"c": called, "cs": plural(called) if called == column.name else called}
        if figure in _FIGURES:
            return self.say(_FIGURES[figure], **fields)
        most = figure == "MAX"
        if column.kind in ("date", "year"):
            return self.say("latest" if most else "earliest", **fields)
        own = [w for w in self.table.only(column.most if most else column.least) if " " not in w]
        end = self.rng.choice(_ENDS["number"])[not most]
        word = self.rng.choice(own) if own and self.chance(0.3) else end
        return self.say("highest" if most else "lowest", high=word, low=word, **fields)


def meet(rng: random.Random, split: Split, table: Table) -> Speaker:
    """Draw somebody who has a table."""
    return Speaker(
        rng,
        split,
        table,
        casual=rng.random() < 0.25,
        quoting=rng.random() < 0.5,
        hasty=split == "train" and rng.random() < 0.1,
    )
