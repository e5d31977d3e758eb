"""What strangers ask: that the files hold what they are said to, and answers are worked out."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter

import pytest

from deploy.demo.tasks import TASKS
from deploy.demo.tasks.steps import rework
from deploy.demo.voices import SPEAKERS, TEST, TRAIN, SpokenPrompt, read_spoken, read_spoken_voices

VOICES = {**read_spoken_voices(TRAIN), **read_spoken_voices(TEST)}
EVERY = [*read_spoken(SPEAKERS), *(spoken for own in VOICES.values() for spoken in own)]
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def asked(task: str) -> list[SpokenPrompt]:
    return [spoken for spoken in EVERY if spoken.task == task]


def test_every_voice_speaks_of_everything() -> None:
    assert (len(read_spoken_voices(TRAIN)), len(read_spoken_voices(TEST))) == (6, 2)
    for voice in VOICES.values():
        assert Counter(s.task or "none" for s in voice) == dict.fromkeys(TASKS, 12) | {"none": 40}
        assert Counter(s.kind for s in voice) == {None: 72, "everyday": 20, "near miss": 20}
    counts = Counter(spoken.task or "none" for spoken in read_spoken(SPEAKERS))
    assert counts == dict.fromkeys(TASKS, 110) | {"none": 1080}
    assert len({spoken.prompt for spoken in EVERY}) == len(EVERY)


def test_orders_name_customer_item_quantity_and_price() -> None:
    for spoken in asked("orders"):
        order = json.loads(spoken.want or "")
        assert list(order) == ["customer", "item", "qty", "price"], spoken
        for name in (order["customer"], order["item"]):
            assert name.lower() in spoken.prompt.lower(), spoken


def test_sums_are_right_and_worked_out_as_the_generator_does() -> None:
    for spoken in asked("math"):
        found = re.match(r"(\d+) ([-+*/]) (\d+)", spoken.work or "")
        assert found, spoken
        one, other = int(found[1]), int(found[3])
        assert spoken.want == f"Answer: {OPERATIONS[found[2]](one, other)}", spoken
        assert spoken.example.answer == rework(spoken.example.answer), spoken


def test_queries_run_on_the_table_of_their_prompt() -> None:
    for spoken in asked("sql"):
        want = spoken.want or ""
        [name] = re.findall(r"FROM (\w+)", want)
        columns = re.search(rf"\b{name}\s*\(([\w, ]+)\)", spoken.prompt)
        assert columns, spoken
        database = sqlite3.connect(":memory:")
        database.execute(f"CREATE TABLE {name} ({columns[1]})")
        database.execute(want)
        database.close()


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        (
            "triage",
            r"category=(billing|login|shipping|bug|feature); priority=(high|normal|low)",
        ),
        ("dates", r"\d{4}-(0\d|1[0-2])-([0-2]\d|3[01])"),
        ("redact", r"(?s).*\[(NAME|EMAIL|PHONE|CARD|PASSPORT|ADDRESS)\].*"),
    ],
)
def test_answers_have_their_form(task: str, pattern: str) -> None:
    for spoken in asked(task):
        assert re.fullmatch(pattern, spoken.want or ""), spoken
