"""The generated tasks: held-out words, and one right answer each.

Answers are checked by other means than the generators'.
"""

from __future__ import annotations

import json
import operator
import re
import sqlite3
from datetime import date, timedelta
from difflib import SequenceMatcher
from itertools import combinations

import pytest

from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import SPLITS, TASKS, Example, Split
from deploy.demo.tasks.orders import NUMBERS
from deploy.demo.tasks.sql import MORE_TABLES, TABLES
from deploy.demo.tasks.task import list_words
from deploy.demo.tasks.triage import CUES, ISSUES
from deploy.demo.tasks.vocabulary import FIRST_NAMES, LAST_NAMES

N = 200
MONTHS = list_words(
    "january february march april may june july august september october november december"
)
WEEKDAYS = list_words("monday tuesday wednesday thursday friday saturday sunday")
NAMED = pytest.mark.parametrize("name", list(TASKS))
BY_SPLIT = pytest.mark.parametrize("split", SPLITS)


def examples(name: str, split: Split) -> list[Example]:
    return TASKS[name].examples(split, N, seed=3)


def test_the_six_tasks() -> None:
    assert list(TASKS) == ["orders", "sql", "math", "triage", "dates", "redact"]
    assert all(task.name == name and task.description for name, task in TASKS.items())


@NAMED
def test_words_and_phrasings_differ_by_split(name: str) -> None:
    for label, lists in TASKS[name].vocabulary.items():
        for one, other in combinations(SPLITS, 2):
            assert not set(lists[one]) & set(lists[other]), (label, one, other)
        assert all(len(lists[split]) == len(set(lists[split])) > 0 for split in SPLITS), label


@NAMED
def test_no_prompt_in_two_splits(name: str) -> None:
    prompts = [{example.prompt for example in examples(name, split)} for split in SPLITS]
    assert all(not one & other for one, other in combinations(prompts, 2))


@NAMED
@BY_SPLIT
def test_examples_are_repeatable_distinct_single_lines(name: str, split: Split) -> None:
    drawn = examples(name, split)
    assert drawn == examples(name, split)
    assert drawn != TASKS[name].examples(split, N, seed=4)
    assert len({example.prompt for example in drawn}) == N
    assert all(
        "\n" not in example.prompt and example.prompt == example.prompt.strip() for example in drawn
    )
    assert not any(mark in example.prompt for example in drawn for mark in "{}|")


@BY_SPLIT
def test_orders(split: Split) -> None:
    for example in examples("orders", split):
        order = json.loads(example.answer)
        assert list(order) == ["customer", "item", "qty", "price"]
        assert example.answer == example.answer.replace(": ", ":").replace(", ", ",")
        assert re.search(rf"\b{order['customer']}\b", example.prompt)
        assert re.search(rf"\b{order['item']}\b", example.prompt)
        quantity = NUMBERS[order["qty"] - 2] if order["qty"] <= 12 else "-"
        assert re.search(
            rf"\b({order['qty']}|{quantity})\b|x{order['qty']}\b", example.prompt, re.IGNORECASE
        )
        assert f"{order['price']:.2f}".removesuffix(".00") in example.prompt


def database() -> sqlite3.Connection:
    """Return every table of the task with three rows in it."""
    connection = sqlite3.connect(":memory:")
    for line in {
        line for tables in (TABLES, MORE_TABLES) for split in SPLITS for line in tables[split]
    }:
        table, columns = line.split(": ")
        texts, numbers = (part.split(", ") for part in columns.split("; "))
        connection.execute(f"CREATE TABLE {table} ({', '.join(texts + numbers)})")
        rows = [[f"word {row}"] * len(texts) + [row * 1000] * len(numbers) for row in (1, 2, 3)]
        connection.executemany(
            f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows
        )
    return connection


@BY_SPLIT
def test_sql_runs_and_uses_what_the_prompt_names(split: Split) -> None:
    connection = database()
    for example in examples("sql", split):
        statement, prompt = example.answer, example.prompt.lower()
        rows = connection.execute(statement).fetchall()
        if "COUNT(*) FROM" in statement and "WHERE" not in statement and "GROUP" not in statement:
            assert rows == [(3,)]
        if "MAX" in statement:
            assert rows == [(3000,)]
        if "SUM" in statement:
            assert rows == [(6000,)]
        assert all(word in prompt for word in re.findall(r"\b[a-z]+\b|\b\d+\b", statement))


@BY_SPLIT
def test_math(split: Split) -> None:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    for example in examples("math", split):
        line, answer = example.answer.split("\nAnswer: ")
        *terms, result = line.split(" = ")
        assert result == answer
        for term in terms:
            a, sign, b = term.split()
            assert signs[sign](int(a), int(b)) == int(result), example
        a, _, b = terms[0].split()
        assert sorted(re.findall(r"\d+", example.prompt)) == sorted((a, b))


@BY_SPLIT
def test_triage(split: Split) -> None:
    answers = {example.answer for example in examples("triage", split)}
    assert answers == {
        f"category={category}; priority={priority}" for category in ISSUES for priority in CUES
    }


def written_date(text: str) -> date:
    """Return the only date in the text, however it is written."""
    if found := re.search(r"(\d{4})/(\d\d)/(\d\d)", text):
        return date(*map(int, found.groups()))
    if found := re.search(r"(\d\d)\.(\d\d)\.(\d{4})", text):
        day, month, year = map(int, found.groups())
        return date(year, month, day)
    digits = re.search(r"\d{4}", text)
    name = re.search(rf"\b({'|'.join(f'{name[:3]}({name[3:]})?' for name in MONTHS)})\b", text)
    assert digits, text
    assert name, text
    around = text[max(0, name.start() - 12) : name.end() + 10].replace(digits[0], " ")
    rest = re.search(r"\d{1,2}", around)
    assert rest, text
    number = next(i for i, full in enumerate(MONTHS, 1) if full.startswith(name[1]))
    return date(int(digits[0]), number, int(rest[0]))


def days_away(question: str, today: date) -> int:
    """Return how many days from today the question asks about."""
    for words, away in (
        ("after tomorrow", 2),
        ("before yesterday", -2),
        ("tomorrow", 1),
        ("yesterday", -1),
    ):
        if words in question:
            return away
    if found := re.search(r"(\d) days(?:' time)? ?(ago|back|earlier|before)?", question):
        return int(found[1]) * (-1 if found[2] else 1)
    weekday = re.search("|".join(WEEKDAYS), question)
    assert weekday, question
    back = re.search(rf"(last|past|previous) {weekday[0]}", question)
    step = -1 if back else 1
    return next(
        n
        for n in range(step, 8 * step, step)
        if WEEKDAYS[(today + timedelta(n)).weekday()] == weekday[0]
    )


@BY_SPLIT
def test_dates(split: Split) -> None:
    for example in examples("dates", split):
        prompt = example.prompt.lower()
        *steps, iso = example.answer.split("\n")
        day = written_date(prompt)
        if not steps:
            assert iso == day.isoformat()
            continue
        stated, question = prompt.split(WEEKDAYS[day.weekday()], maxsplit=1)
        assert not any(weekday in stated for weekday in WEEKDAYS), example
        away = days_away(question, day)
        assert iso == (day + timedelta(away)).isoformat(), example
        worked = [int(found) for found in re.findall(r" (\d\d)\b", steps[0])]
        sign = 1 if away > 0 else -1
        assert worked == list(range(day.day, day.day + away + sign, sign)), example


@BY_SPLIT
def test_redaction_leaves_no_personal_data_and_all_the_rest(split: Split) -> None:
    names = {*FIRST_NAMES[split], *LAST_NAMES[split]}
    for example in examples("redact", split):
        assert not names & set(re.findall(r"\w+", example.answer)), example
        assert "@" not in example.answer
        assert not re.search(r"\d{3}", example.answer.replace("2019", ""))
        kept = re.escape(example.answer)
        for place in ("NAME", "EMAIL", "PHONE"):
            kept = kept.replace(re.escape(f"[{place}]"), "(.+?)")
        assert re.search(kept, example.prompt), example
        assert re.search(r"\[(NAME|EMAIL|PHONE)\]", example.answer)


def test_everyday_prompts_are_many_and_never_alike_across_splits() -> None:
    prompts = {split: read_everyday(split) for split in SPLITS}
    assert [
        len(prompts[split]) >= least for split, least in zip(SPLITS, (60, 24, 48), strict=True)
    ] == [True] * 3
    everything = [prompt for split in SPLITS for prompt in prompts[split]]
    assert all(prompt == prompt.strip() and prompt for prompt in everything)
    for one, other in combinations(everything, 2):
        assert SequenceMatcher(None, one.lower(), other.lower()).ratio() < 0.85, (one, other)
