"""The suite: the same every time, held out, and wanted answers that follow from the prompts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from deploy.demo.everyday import read_everyday
from deploy.demo.model import EXPERTS
from deploy.demo.suite import draw_suite, draw_tuning
from deploy.demo.suite.adversarial import NONE
from deploy.demo.suite.corrupt import RATES, corrupt_prompt
from deploy.demo.suite.phrasings import read_phrasings
from deploy.demo.tasks import SPLITS, TASKS, Example
from deploy.demo.voices import SPEAKERS, TRAIN, read_spoken, read_spoken_voices
from tests.deploy.test_phrasings import CHECKS, unlike
from tta_serve.evaluation.questions import (
    ADVERSARIAL,
    CORRUPTED,
    EVERYDAY,
    MIXED,
    PARAPHRASED,
    REMOVED,
    TWO_SKILLS,
    VOICES,
    Question,
)
from tta_serve.evaluation.scoring import Score, score

N = 20
SUITE = draw_suite(N)
BY_STRENGTH = {strength: [q for q in SUITE if q.strength == strength] for strength in RATES}


def asked(slice_name: str, task: str | None = None) -> list[Question]:
    return [q for q in SUITE if q.slice == slice_name and task in (None, q.task)]


def test_slices_and_their_sizes() -> None:
    pairs = {q.task for q in asked(TWO_SKILLS)}
    sizes = Counter(q.group for q in SUITE)
    assert sizes == {
        MIXED: 6 * N,
        PARAPHRASED: 6 * 8 + 20,
        **{f"{CORRUPTED}:{strength}": 6 * N for strength in RATES},
        TWO_SKILLS: len(pairs) * N,
        EVERYDAY: len(read_everyday("test")),
        REMOVED: 6 * N,
        ADVERSARIAL: 6 * N // 2 + len(NONE),
        VOICES: 2 * 112,
    }
    assert {"redact+triage", "orders+math", "sql+dates"} < pairs
    tuning = draw_tuning(3, SUITE)
    assert Counter(q.task for q in tuning) == dict.fromkeys([*TASKS, *pairs], 3)
    assert not {q.prompt for q in tuning} & {q.prompt for q in [*SUITE, *draw_suite(2)]}
    few = draw_suite(2)
    assert all(len([q for q in few if q.task == pair]) == 8 for pair in pairs)
    assert {q.task for q in few if q.slice == ADVERSARIAL} == {*TASKS, None}


def test_the_same_arguments_give_the_same_questions() -> None:
    assert draw_suite(N) == SUITE
    assert draw_suite(N, seed=6) != SUITE
    order = [q.task for q in asked(MIXED)]
    assert order != [task for task in TASKS for _ in range(N)]


def test_nothing_was_seen_in_training_or_is_chosen_by() -> None:
    seen = {
        e.prompt
        for task in TASKS.values()
        for split in SPLITS[:2]
        for e in task.examples(split, 1000, seed=0)
    }
    seen |= {
        line
        for task in TASKS
        for line in (EXPERTS / task / "examples.txt").read_text(encoding="utf-8").splitlines()
    }
    seen |= {
        *read_everyday("train"),
        *read_everyday("validation"),
        *(p.prompt for p in read_phrasings("validation")),
        *(p.prompt for p in read_spoken(SPEAKERS)),
        *(p.prompt for own in read_spoken_voices(TRAIN).values() for p in own),
    }
    assert not seen & {q.prompt for q in SUITE}


def test_no_prompt_is_in_a_slice_twice_nor_in_two_that_are_made_apart() -> None:
    apart = [q.prompt for q in SUITE if q.slice not in (CORRUPTED, REMOVED)]
    assert len(apart) == len(set(apart))
    assert {q.prompt for q in asked(REMOVED)} == {q.prompt for q in asked(MIXED)}


def test_a_wanted_answer_scores_one() -> None:
    for question in SUITE:
        assert (question.want is None) == (question.task is None or question.slice == VOICES)
        if question.want:
            assert score(question.kind, question.want, question.parts, question.want) == Score(
                1.0, 1.0
            ), question


@pytest.mark.parametrize(
    ("task", "change", "graded"),
    [
        ("orders", lambda want: re.sub(r'"qty":\d+', '"qty":0', want), 0.75),
        ("triage", lambda want: re.sub(r"priority=\w+", "priority=none", want), 0.5),
        ("math", lambda want: want.rpartition("\n")[0], None),
        ("redact", lambda want: f"Sorry, I do not know that at all: {want}", None),
        ("sql", lambda want: want.replace("SELECT", "DELETE"), None),
        ("dates", lambda want: want[::-1], 0.0),
    ],
)
def test_an_answer_that_is_partly_right(
    task: str, change: Callable[[str], str], graded: float | None
) -> None:
    for question in asked(MIXED, task):
        assert question.want
        got = score(question.kind, question.want, (), change(question.want))
        assert got.exact == 0
        assert got.graded == graded if graded is not None else 0.3 < got.graded < 1, question


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("slice_name", [MIXED, ADVERSARIAL])
def test_wanted_answers_follow_from_the_prompts(slice_name: str, task: str) -> None:
    for question in asked(slice_name, task):
        CHECKS[task](question.prompt, question.want or "")


def edits(one: str, other: str) -> int:
    """Return the Levenshtein distance: the fewest letters to add, drop or change."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def test_a_stronger_corruption_does_more_damage_to_the_same_prompts() -> None:
    mixed = asked(MIXED)
    damage = [
        [edits(q.prompt, was.prompt) for q, was in zip(own, mixed, strict=True)]
        for own in BY_STRENGTH.values()
    ]
    light, medium, strong = (sum(own) / len(own) for own in damage)
    assert 1 < light < 0.7 * medium < 0.7 * 0.7 * strong
    for one, two, three in zip(*damage, strict=True):
        assert one <= two + 1 <= three + 2
    assert sum(not own for own in damage[1]) < 0.1 * len(mixed), (
        "medium leaves too many as they were"
    )
    assert all(
        q.prompt == corrupt_prompt(Example(was.prompt, was.want or ""), "strong", 5)
        for q, was in zip(BY_STRENGTH["strong"], mixed, strict=True)
    )


@pytest.mark.parametrize("strength", list(RATES))
def test_what_the_answer_is_made_of_survives(strength: str) -> None:
    for question, was in zip(BY_STRENGTH[strength], asked(MIXED), strict=True):
        assert (question.want, question.task, question.kind) == (was.want, was.task, was.kind)
        text = was.prompt.split(" ", 1)[1]  # a first word is a capital whatever it is
        before, now = (Counter(re.findall(r"\w+", prompt)) for prompt in (text, question.prompt))
        needed = {*re.findall(r"\w+", was.want or ""), *re.findall(r"\w*\d\w*|\b[A-Z]\w+", text)}
        assert all(now[word] >= before[word] for word in needed), question


def test_typos_case_and_missing_words_all_occur() -> None:
    words = [
        (was.prompt.split(), q.prompt.split())
        for q, was in zip(BY_STRENGTH["medium"], asked(MIXED), strict=True)
    ]
    assert sum(len(now) < len(before) for before, now in words) > N
    same_length = [
        pair
        for before, now in words
        if len(before) == len(now)
        for pair in zip(before, now, strict=True)
    ]
    assert sum(one != other and one.lower() == other.lower() for one, other in same_length) > N
    assert sum(one.lower() != other.lower() for one, other in same_length) > N


def test_prompts_for_nobody_are_everyday_prompts_of_their_own() -> None:
    everything = [*NONE, *(prompt for split in SPLITS for prompt in read_everyday(split))]
    unlike(
        [
            *everything,
            *(
                p.prompt
                for split in ("validation", "test")
                for p in read_phrasings(split)
                if not p.task
            ),
        ]
    )
