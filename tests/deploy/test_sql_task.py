"""Questions about tables: statements run, say what the prompt does, and select what they should."""

from __future__ import annotations

import operator
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from deploy.demo.tasks import SPLITS, TASKS, Split, sql
from deploy.demo.tasks.sql import Condition, Statement, Table
from deploy.demo.tasks.sql.values import draw_value
from deploy.demo.voices import SPEAKERS, TRAIN, read_spoken, read_spoken_voices
from tests.deploy.test_phrasings import check_sql

N = 600
BY_SPLIT = pytest.mark.parametrize("split", SPLITS)
Row = dict[str, Any]
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
# What is said, in some form, of whatever has a part of a statement like this.
SAID = {
    "COUNT(": "how many|how much|count|number|rows|tall|headcount|reckon|breakdown|break down",
    "AVG(": "average|avg|mean",
    "SUM(": "total|sum|altogether|added up|overall",
    "GROUP BY": "per |each|every|by|after",
    "DISTINCT": "different|distinct|unique|once|one time|single|duplicates|repeats|only|never",
    "IS NULL": "null|empty|missing|no |without|blank|lacking|nothing|never|not|nobody|unresolved",
    " >= ": ">=|at least|or more|less than|and up|or higher|minimum|not below",
    " <= ": "<=|at most|or less|more than|up to|or lower|maximum|not above",
    " <> ": "<>|!=|not|but|other|different|unequal|except",
    "BETWEEN": "between|from .* to|within|span",
    "*": "everything|every column|all|full|whole|complete|entire|every|count|many|number|how much"
    "|row|tall|headcount|reckon|break",
}


def drawn(split: Split, n: int = N) -> Iterator[tuple[Table, str, Statement]]:
    rng = random.Random(f"test/{split}")
    for _ in range(n):
        table = sql.draw_table(rng, split)
        yield table, *sql.draw(rng, split, table)


@BY_SPLIT
def test_the_prompt_says_all_that_the_statement_has(split: Split) -> None:
    for table, prompt, statement in drawn(split):
        written = re.search(rf"\b{table.name} ?\(([^)]+)\)", prompt)
        assert written, prompt
        assert written[1].replace(" ", "").split(",") == [c.name for c in table.columns]
        check_sql(prompt.replace(f"{table.name} (", f"{table.name}("), statement.to_sql())
        for condition in statement.conditions:
            assert str(condition.value) in prompt or isinstance(condition.value, int), prompt


@pytest.mark.parametrize("split", SPLITS)
def test_words_agree_with_the_statement(split: Split) -> None:
    for _, prompt, statement in drawn(split):
        for part, words in SAID.items():
            if part in statement.to_sql() and not sloppy(prompt):
                assert re.search(words, prompt.lower()), (prompt, statement.to_sql())


def sloppy(prompt: str) -> bool:
    """Return whether somebody who mistypes wrote it, so that words are not as they are listed."""
    known = {word for said in SAID.values() for word in re.findall(r"[a-z]{5,}", said)}
    found = set(re.findall(r"[a-z]{5,}", prompt.lower()))
    return any(sorted(one) == sorted(other) and one != other for one in found for other in known)


def rows_of(rng: random.Random, split: Split, table: Table, statement: Statement) -> list[Row]:
    """Draw rows, in which values of the statement's conditions are frequent and some are none."""
    rows: list[Row] = []
    for _ in range(30):
        row: Row = {}
        for column in table.columns:
            near = [c.value for c in statement.conditions if c.column == column.name]
            fresh = draw_value(rng, split, column) if column.values or column.ordered else "x"
            row[column.name] = rng.choice([fresh, *near])
        for column in table.columns:
            if any(c.column == column.name and c.sign == "IS NULL" for c in statement.conditions):
                row[column.name] = rng.choice((None, row[column.name]))
        rows.append(row)
    return rows


def holds(condition: Condition, row: Row) -> bool:
    value = row[condition.column]
    if condition.sign == "IS NULL":
        return value is None
    if value is None:
        return False
    if isinstance(value, str) != isinstance(condition.value, str):
        return condition.sign == "<>"
    if condition.sign == "BETWEEN":
        return bool(condition.value <= value <= condition.upper)
    return bool(SIGNS[condition.sign](value, condition.value))


def select(statement: Statement, table: Table, rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Work out what a statement selects, without SQL."""
    kept = [row for row in rows if all(holds(c, row) for c in statement.conditions)]
    if statement.figure:
        if statement.by is None:
            return [(worked(statement, kept),)]
        groups: dict[object, list[Row]] = {}
        for row in kept:
            groups.setdefault(row[statement.by], []).append(row)
        return [(key, worked(statement, group)) for key, group in groups.items()]
    if statement.order:
        order = statement.order
        kept = sorted(kept, key=lambda row: str(row[order])) if mixed(kept, order) else kept
        if not mixed(kept, order):
            kept.sort(key=lambda row: row[order], reverse=statement.descending)
    names = statement.columns or tuple(column.name for column in table.columns)
    found = [tuple(row[name] for name in names) for row in kept[: statement.limit]]
    return list(dict.fromkeys(found)) if statement.distinct else found


def mixed(rows: Sequence[Row], name: str) -> bool:
    """Return whether a column has numbers and text, which Python does not order."""
    return len({isinstance(row[name], str) for row in rows}) > 1


def worked(statement: Statement, rows: Sequence[Row]) -> object:
    if statement.figure == "COUNT":
        return len(rows)
    values = [row[statement.of] for row in rows]
    if not values:
        return None
    if statement.figure in ("MAX", "MIN"):
        return (max if statement.figure == "MAX" else min)(values)
    total = sum(values)
    return total if statement.figure == "SUM" else total / len(values)


@BY_SPLIT
def test_statements_select_what_their_descriptions_say(split: Split) -> None:
    rng = random.Random(7)
    for table, _, statement in drawn(split):
        rows = rows_of(rng, split, table, statement)
        names = [column.name for column in table.columns]
        database = sqlite3.connect(":memory:")
        database.execute(f"CREATE TABLE {table.name} ({', '.join(names)})")
        marks = ", ".join("?" * len(names))
        database.executemany(
            f"INSERT INTO {table.name} VALUES ({marks})", [tuple(row.values()) for row in rows]
        )
        found = database.execute(statement.to_sql()).fetchall()
        database.close()
        order = statement.order
        if order and (mixed(rows, order) or len({row[order] for row in rows}) < len(rows)):
            assert len(found) == len(select(statement, table, rows))
            continue
        wanted = select(statement, table, rows)
        close = [tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in wanted]
        got = [tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in found]
        assert Counter(got) == Counter(close), statement.to_sql()
        if order:
            assert got == close, statement.to_sql()


def test_kinds_are_as_frequent_as_among_people() -> None:
    answers = [statement.to_sql() for _, _, statement in drawn("train", 3000)]
    people = [
        spoken.want or ""
        for own in (read_spoken(SPEAKERS), *read_spoken_voices(TRAIN).values())
        for spoken in own
        if spoken.task == "sql"
    ]
    for part in (r"WHERE", r"ORDER BY", r"LIMIT", r"GROUP BY", r"COUNT", r"SELECT \*", r"DESC"):
        ours, theirs = (
            sum(bool(re.search(part, text)) for text in texts) / len(texts)
            for texts in (answers, people)
        )
        assert abs(ours - theirs) < 0.08, (part, ours, theirs)


def test_no_template_is_a_line_of_somebody() -> None:
    """No run of seven words of a template is in what people said."""
    runs = set()
    for own in (read_spoken(SPEAKERS), *read_spoken_voices(TRAIN).values()):
        for spoken in own:
            words = re.findall(r"[a-z']+", spoken.prompt.lower())
            runs |= set(zip(*(words[at:] for at in range(7)), strict=False))
    for by_split in TASKS["sql"].vocabulary.values():
        for split in SPLITS:
            for template in by_split[split]:
                words = re.findall(r"[a-z']+|[{\[]", template.lower())
                assert not runs & set(zip(*(words[at:] for at in range(7)), strict=False)), template


def test_tables_are_many() -> None:
    tables = {(table.name, table.columns) for table, _, _ in drawn("train", 3000)}
    names = Counter(name for name, _ in tables)
    assert len(tables) > 2900
    assert len(names) > 1000
    assert all(2 <= len(columns) <= 7 for _, columns in tables)
