"""A question about a table whose columns are in the prompt, to one SQL statement.

tables       tables and their columns, from a file of people's words
values       what conditions compare with
statements   a statement as a description, and its SQL
speaker      what somebody says for columns, conditions and orders
requests     the kinds of requests
"""

from __future__ import annotations

import random
import re

from deploy.demo.tasks.sql.requests import draw_request
from deploy.demo.tasks.sql.speaker import WORDING, Speaker, meet
from deploy.demo.tasks.sql.statements import Condition, Statement
from deploy.demo.tasks.sql.tables import (
    COLUMN_NAMES,
    NOUNS,
    PLACES,
    TABLE_NAMES,
    WORDS,
    Table,
    draw_table,
    read_table,
)
from deploy.demo.tasks.sql.values import draw_place
from deploy.demo.tasks.task import Example, Split, Task, capitalise
from deploy.demo.tasks.vocabulary import FIRST_NAMES

FRAMES = WORDING["frame"]


def write_table(rng: random.Random, split: Split, table: Table) -> str:
    """Write a table as people do: its name, and its columns in parentheses."""
    between = rng.choice((", ",) * 9 + (",",))
    space = " " if split == "train" and rng.random() < 0.02 else ""
    return f"{table.name}{space}({between.join(column.name for column in table.columns)})"


def draw(rng: random.Random, split: Split, table: Table) -> tuple[str, Statement]:
    """Draw a prompt about a table, and the statement that answers it."""
    speaker = meet(rng, split, table)
    asked, statement = draw_request(speaker)
    written = write_table(rng, split, table)
    if "{table}" in asked:
        prompt = _start(asked).format(table=written)
    else:
        fields = {"ask": asked, "Ask": _start(asked), "n": rng.randint(2, 9), "table": written}
        prompt = speaker.say("frame", **fields)
    return _tidy(_surround(speaker, prompt)), statement


def _surround(speaker: Speaker, prompt: str) -> str:
    """Put before and after a prompt what has nothing to do with it."""
    rng, split = speaker.rng, speaker.split
    for kind in ("before", "after"):
        if not speaker.chance(0.2):
            continue
        said = speaker.say(
            kind,
            name=rng.choice(FIRST_NAMES[split]),
            place=draw_place(rng, split),
            n=rng.randint(2, 40),
        )
        stop = "" if prompt[-1] in ".!?)" else rng.choice((",", ".", ""))
        prompt = f"{said} {prompt}" if kind == "before" else f"{prompt}{stop} {said}"
    return prompt


def _start(asked: str) -> str:
    """Return a request as the start of a sentence; names of columns stay as they are."""
    first = asked.split(maxsplit=1)[0]
    return capitalise(asked) if re.fullmatch(r"[a-z]+\W?", first) else asked


def _tidy(prompt: str) -> str:
    """Remove marks that follow others where a request was put into a sentence."""
    prompt = re.sub(r"\?[.,;:?]", "?", " ".join(prompt.split()))
    prompt = re.sub(r"(?<!\.)\.\.(?!\.)", ".", prompt)
    return re.sub(r"([!,])\.", r"\1", prompt)


def make(rng: random.Random, split: Split) -> Example:
    """Draw a table, and somebody's request about it."""
    prompt, statement = draw(rng, split, draw_table(rng, split))
    return Example(prompt, statement.to_sql())


TASK = Task(
    name="sql",
    description=(
        "Answers a question about a table, whose columns are given, with one SQL statement."
    ),
    make=make,
    vocabulary={
        "tables": TABLE_NAMES,
        "columns": COLUMN_NAMES,
        "nouns": NOUNS,
        "places": PLACES,
        "words": WORDS,
        **{f"said: {k}": {s: sorted(set(t)) for s, t in v.items()} for k, v in WORDING.items()},
    },
)

__all__ = [
    "FRAMES",
    "TASK",
    "Condition",
    "Statement",
    "Table",
    "draw",
    "draw_table",
    "read_table",
    "write_table",
]
