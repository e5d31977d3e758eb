"""The generated tasks: held-out words, and one right answer each.

Answers are checked by other means than the generators'.
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import combinations, product

import pytest

from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import SPLITS, TASKS, Example, Split, arithmetic, redact
from deploy.demo.tasks.orders import WORDING
from deploy.demo.tasks.steps import rework, work_out
from deploy.demo.tasks.triage import CUES, ISSUES
from tests.deploy.number_reading import read_numbers

N = 200
# Tasks whose prompts may be forms and letters, of many lines.
FORMS = ("orders", "redact")
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
def test_examples_are_repeatable_distinct_lines(name: str, split: Split) -> None:
    drawn = examples(name, split)
    assert drawn == examples(name, split)
    assert drawn != TASKS[name].examples(split, N, seed=4)
    assert len({example.prompt for example in drawn}) == N
    # Forms, letters and texts to redact may have several lines.
    assert name in FORMS or not any("\n" in example.prompt for example in drawn)
    assert all(example.prompt == example.prompt.strip() for example in drawn)
    assert all(example.answer == example.answer.strip() for example in drawn)
    assert not any(mark in example.prompt for example in drawn for mark in "{}|")


def check_orders(prompt: str, want: str) -> None:
    order = json.loads(want)
    assert list(order) == ["customer", "item", "qty", "price"]
    assert want == json.dumps(order, ensure_ascii=False, separators=(",", ":"))
    for name in (order["customer"], order["item"]):
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt), name
    assert not re.match(r"(the|Miss|[MD]rs?\.?|Ms\.?|Prof\.?) \S+ \S", order["customer"])
    assert Counter([order["qty"], order["price"]]) <= Counter(read_numbers(prompt)), prompt


@BY_SPLIT
def test_orders(split: Split) -> None:
    for example in TASKS["orders"].examples(split, 1000, seed=3):
        check_orders(example.prompt, example.answer)


@BY_SPLIT
def test_wording_of_orders_names_all_four_parts(split: Split) -> None:
    bodies = [*WORDING["bodies"][split], *WORDING["whole"][split]]
    assert len(bodies) >= (300 if split == "train" else 25)
    for body in bodies:
        places = set(re.findall(r"{(\w+)}", body))
        assert "name" in places, body
        assert len(places & {"item", "items", "Items"}) == 1, body
        assert places & {"qty", "Qty", "digits"}, body
        assert places & {"price", "plain"}, body


def test_orders_are_too_varied_to_be_recalled() -> None:
    orders = [json.loads(e.answer) for e in TASKS["orders"].examples("train", 1000, seed=3)]
    assert len({order["customer"] for order in orders}) > 950
    assert len({order["item"] for order in orders}) > 800
    assert len({order["qty"] for order in orders}) > 150
    assert len({order["price"] for order in orders}) > 400


SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def check_steps(answer: str) -> tuple[int, str, int]:
    """Check that every step is right, small, and made of what stands before it.

    Returns:
        What is calculated.
    """
    *lines, last = answer.split("\n")
    first = re.match(r"(\d+) ([-+*/]) (\d+)", lines[0])
    assert first, answer
    a, sign, b = int(first[1]), first[2], int(first[3])
    assert last == f"Answer: {SIGNS[sign](a, b):.0f}", answer
    assert SIGNS[sign](a, b) == int(last.removeprefix("Answer: ")), answer
    for line in lines[len(lines) > 1 :]:
        step = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line)
        assert step, answer
        one, other = int(step[1]), int(step[3])
        assert SIGNS[step[2]](one, other) == int(step[4]), answer
        short = [len(str(n).rstrip("0")) < 2 for n in (one, other)]
        by_heart = step[2] == "/" and other <= 10 and len(step[4].rstrip("0")) < 2
        multiple = sign == "/" and other == b > 10
        round_one = one % 10 == 0 or other % 10 == 0
        simple = any(short) or round_one if step[2] in "+-" else all(short)
        assert simple or by_heart or multiple, answer
    return a, sign, b


@BY_SPLIT
def test_math(split: Split) -> None:
    drawn = [(example, check_steps(example.answer)) for example in examples("math", split)]
    for example, (a, sign, b) in drawn:
        said = read_numbers(example.prompt)
        assert a in said, example
        assert b in said, example
        if sign in "+*":
            assert said.index(a) <= len(said) - 1 - said[::-1].index(b), example
        assert max(a, b, SIGNS[sign](a, b)) <= 150
    counts = Counter(sign for _, (_, sign, _) in drawn)
    assert all(counts[sign] > N / 8 for sign in SIGNS)


def test_every_calculation_is_worked_out_in_right_steps() -> None:
    small = range(1, 100)
    for a, b in product(small, small):
        assert check_steps(work_out(a, "+", b)) == (a, "+", b)
        if a > b:
            assert check_steps(work_out(a, "-", b)) == (a, "-", b)
        if a * b < 100:
            assert check_steps(work_out(a * b, "/", b)) == (a * b, "/", b)
            assert check_steps(work_out(a, "*", b)) == (a, "*", b)


@pytest.mark.parametrize(
    ("want", "steps"),
    [
        ("8 * 6 = 48\nAnswer: 48", ["8 * 6 = 48"]),
        ("46 + 38 = 84\nAnswer: 84", ["46 + 38", "46 + 30 = 76", "76 + 8 = 84"]),
        ("84 - 37 = 47\nAnswer: 47", ["84 - 37", "84 - 30 = 54", "54 - 7 = 47"]),
        ("4 * 23 = 92\nAnswer: 92", ["4 * 23", "4 * 20 = 80", "4 * 3 = 12", "80 + 12 = 92"]),
        ("96 / 4 = 24\nAnswer: 24", ["96 / 4", "80 / 4 = 20", "16 / 4 = 4", "20 + 4 = 24"]),
        ("57 / 19 = 3\nAnswer: 3", ["57 / 19", "2 * 19 = 38", "3 * 19 = 57"]),
    ],
)
def test_a_line_is_worked_out_anew_in_steps(want: str, steps: list[str]) -> None:
    worked = "\n".join([*steps, want.split("\n")[1]])
    assert rework(want) == worked
    assert rework(worked) == worked
    assert TASKS["math"].result(worked) == want.split("\n")[1]


def test_what_names_no_calculation_is_not_worked_out() -> None:
    with pytest.raises(ValueError, match="no calculation in 'Answer: 5'"):
        rework("Answer: 5")


@BY_SPLIT
def test_each_operation_is_asked_in_many_ways(split: Split) -> None:
    for sign in SIGNS:
        assert len(arithmetic.WORDING[sign][split]) >= (70 if split == "train" else 8)


@BY_SPLIT
def test_triage(split: Split) -> None:
    answers = {example.answer for example in examples("triage", split)}
    assert answers == {
        f"category={category}; priority={priority}" for category in ISSUES for priority in CUES
    }


WORD = r"[^\W\d_][\w.'-]*"
# What may stand where a placeholder is.
PRIVATE = {
    "[NAME]": rf"({WORD}(?: {WORD}){{0,4}})",
    "[EMAIL]": r"([\w.-]+@[\w.-]+\w)",
    "[PHONE]": r"(\+?\(?\d[\d ()./-]{5,}\d)",
    "[CARD]": r"(\d(?:[ .-]?\d){12,15})",
    "[PASSPORT]": r"((?=[A-Z -]*\d)[A-Z\d][A-Z\d -]{5,10})",
    "[ADDRESS]": r"(\w[^\n@]{5,})",
}


def find_private(prompt: str, clean: str) -> list[tuple[str, str]]:
    """Return each placeholder with what stands for it in the prompt, the rest being the same."""
    pieces = re.split(f"({'|'.join(map(re.escape, PRIVATE))})", clean)
    forms = [PRIVATE[piece] if at % 2 else re.escape(piece) for at, piece in enumerate(pieces)]
    # A text that begins with a placeholder may not begin within a word.
    found = re.search(rf"(?<!\w){''.join(forms)}", prompt)
    assert found, (prompt, clean)
    return list(zip(pieces[1::2], found.groups(), strict=True))


def leaks(text: str) -> bool:
    """Say whether a text has an email address or as many digits as a number to reach someone."""
    undated = re.sub(r"\b\d{4}-\d\d-\d\d\b", "", text)
    return bool(re.search(r"\w@|\d(?:[ -]?\d){6}", undated))


@BY_SPLIT
def test_redaction_leaves_no_personal_data_and_all_the_rest(split: Split) -> None:
    names = {*redact.TASK.vocabulary["first"][split], *redact.TASK.vocabulary["last"][split]}
    kinds: Counter[str] = Counter()
    for example in examples("redact", split):
        assert not names & set(re.findall(r"\w+", example.answer)), example
        assert not leaks(example.answer), example
        private = find_private(example.prompt, example.answer)
        kinds.update(kind for kind, _ in private)
        assert not any(value in example.answer.split() for _, value in private), example
        asked = example.prompt
        for _, value in private:
            asked = asked.replace(value, "", 1)
        assert not leaks(asked), example
    assert set(kinds) == set(PRIVATE)
    assert min(kinds.values()) >= N // 50


@BY_SPLIT
def test_texts_to_redact_come_before_and_after_what_is_asked(split: Split) -> None:
    drawn = examples("redact", split)
    firsts = [example.answer.split("[")[0] for example in drawn]
    starts = sum(
        len(first) > 3 and example.prompt.strip("\"'(").startswith(first)
        for first, example in zip(firsts, drawn, strict=True)
    )
    ends = sum(example.prompt[-8:] == example.answer[-8:] for example in drawn)
    lines = sum("\n" in example.prompt for example in drawn)
    assert starts > N // 20
    assert ends > N // 5
    assert N // 20 < lines < N // 2


def test_everyday_prompts_are_many_and_never_alike_across_splits() -> None:
    prompts = {split: read_everyday(split) for split in SPLITS}
    assert [
        len(prompts[split]) >= least for split, least in zip(SPLITS, (60, 24, 48), strict=True)
    ] == [True] * 3
    everything = [prompt for split in SPLITS for prompt in prompts[split]]
    assert all(prompt == prompt.strip() and prompt for prompt in everything)
    for one, other in combinations(everything, 2):
        assert SequenceMatcher(None, one.lower(), other.lower()).ratio() < 0.85, (one, other)
