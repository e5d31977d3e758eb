"""Phrasings by hand: unlike what the generators say, each answer worked out anew."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import combinations

import pytest

from deploy.demo.everyday import read_everyday
from deploy.demo.suite.phrasings import Phrasing, read_phrasings
from deploy.demo.tasks import SPLITS, TASKS
from deploy.demo.tasks.sql import values as sql_values
from deploy.demo.tasks.triage import CUES, ISSUES
from tests.deploy.date_reading import check_worked, wanted_day, written_date
from tests.deploy.number_reading import read_numbers
from tests.deploy.test_tasks import (
    PRIVATE,
    check_orders,
    check_steps,
    leaks,
)

EVERY = [phrasing for split in ("validation", "test") for phrasing in read_phrasings(split)]
SPELT = {str(n): word for n, word in sql_values.NUMBERS.items()}
ISO = r"\d{4}-\d\d-\d\d"
DATE = r"([\w ,.]*\d{4}[\w ,.]*?)"


def check_sql(prompt: str, want: str) -> None:
    """It runs on a table of the prompt, and takes every name and value from there."""
    found = re.search(r"(\w+)\(([\w, ]+)\)|called (\w+) with the fields ([\w, ]+)", prompt)
    assert found
    table, columns = (found[1] or found[3]), (found[2] or found[4])
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE {table} ({columns})")
    connection.execute(want)
    assert f" FROM {table}" in want
    lower = prompt.lower()
    for value in re.findall(r"'([^']+)'", want):
        assert value in prompt, value
    bare = re.sub(r"'[^']+'| LIMIT 1;", "", want)
    assert all(word in prompt for word in re.findall(r"\b[a-z]+\b", bare))
    for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", bare):
        assert re.search(rf"\b({number}|{SPELT.get(number, number)})\b", lower), number


def check_math(prompt: str, want: str) -> None:
    a, sign, b = check_steps(want)
    said = read_numbers(prompt)
    assert a in said
    assert b in said
    assert sign in "-/" or said.index(a) <= len(said) - 1 - said[::-1].index(b)


def check_triage(prompt: str, want: str) -> None:
    found = re.fullmatch(r"category=(\w+); priority=(\w+)", want)
    assert found
    assert found[1] in ISSUES
    assert found[2] in CUES


def check_dates(prompt: str, want: str) -> None:
    *work, iso = want.split("\n")
    day = written_date(prompt)
    if not work:
        assert iso == day.isoformat()
        return
    assert work[0] == day.isoformat()
    assert iso == wanted_day(prompt, day).isoformat()
    check_worked(work)


def private_parts(prompt: str, clean: str) -> list[tuple[str, str]]:
    """Return what each placeholder of a redacted text, or an ISO date, stands for in the prompt."""
    pieces = re.split(f"({'|'.join(map(re.escape, PRIVATE))}|{ISO})", clean)
    forms = [
        PRIVATE.get(piece, DATE) if at % 2 else re.escape(piece) for at, piece in enumerate(pieces)
    ]
    found = re.search("".join(forms), prompt)
    assert found, (prompt, clean)
    return list(zip(pieces[1::2], found.groups(), strict=True))


def check_redact(prompt: str, want: str) -> None:
    assert private_parts(prompt, want)
    assert not leaks(want)


CHECKS = {
    "orders": check_orders,
    "sql": check_sql,
    "math": check_math,
    "triage": check_triage,
    "dates": check_dates,
    "redact": check_redact,
}


def test_half_is_to_choose_by_and_half_to_judge_by() -> None:
    assert Counter((p.task, p.split) for p in EVERY) == {
        (task, split): 20 if task is None else 8
        for task in (*TASKS, None)
        for split in ("validation", "test")
    }
    assert len({p.prompt for p in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    "phrasing", [p for p in EVERY if p.task], ids=lambda p: f"{p.task}: {p.prompt[:30]}"
)
def test_the_wanted_answer_follows_from_the_prompt(phrasing: Phrasing) -> None:
    CHECKS[phrasing.task or ""](phrasing.prompt, phrasing.want or "")


def test_priorities_and_categories_are_all_there() -> None:
    wants = [p.want or "" for p in EVERY if p.task == "triage"]
    assert all(any(f"={word}" in want for want in wants) for word in (*ISSUES, *CUES))


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


@pytest.mark.parametrize("task", list(TASKS))
def test_no_generator_says_it_so(task: str) -> None:
    """Of a phrasing's words in a row, by threes, no prompt of any split has two fifths."""
    made = [
        trigrams(e.prompt) for split in SPLITS for e in TASKS[task].examples(split, 1000, seed=6)
    ]
    for phrasing in (p for p in EVERY if p.task == task):
        own = trigrams(phrasing.prompt)
        assert max(len(own & other) for other in made) < 0.4 * len(own), phrasing.prompt


def unlike(prompts: Iterable[str]) -> None:
    """Fail if two of them are nearly the same."""
    for one, other in combinations(prompts, 2):
        matcher = SequenceMatcher(None, one.lower(), other.lower())
        assert (
            matcher.real_quick_ratio() < 0.85
            or matcher.quick_ratio() < 0.85
            or matcher.ratio() < 0.85
        ), (one, other)


def test_everyday_prompts_are_nowhere_else() -> None:
    unlike(
        [p.prompt for p in EVERY if not p.task]
        + [prompt for split in SPLITS for prompt in read_everyday(split)]
    )
