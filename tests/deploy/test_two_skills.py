"""Two skills in one request: answers are worked out anew, and each part counts for itself."""

from __future__ import annotations

import json
import re

import pytest

from deploy.demo.suite.two_skills import draw_two_skills
from deploy.demo.tasks.shifts import WEEKDAYS
from tests.deploy.date_reading import wanted_day, written_date
from tests.deploy.test_phrasings import CHECKS, ISO, check_triage, private_parts
from tests.deploy.test_tasks import check_orders
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.scoring import Score, score

TWO = draw_two_skills(20, seed=5)


def of(task: str) -> list[Question]:
    return [question for question in TWO if question.task == task]


def test_parts_are_in_the_answer_and_not_in_the_prompt() -> None:
    for question in TWO:
        assert len(question.tasks) == 2
        assert question.kind == "parts"
        assert len(question.parts) >= 3
        assert not any(part in question.prompt for part in question.parts), question
        assert not any(
            one in other for one in question.parts for other in question.parts if one is not other
        ), question
        for part in question.parts:
            others = [other for other in question.parts if other != part]
            alone = score("parts", "", question.parts, " ".join(others))
            assert alone == Score(0.0, len(others) / len(question.parts)), question


def test_redact_and_triage() -> None:
    for question in of("redact+triage"):
        clean, sorted_as = (question.want or "").split("\n")
        check_triage(question.prompt, sorted_as)
        assert private_parts(question.prompt, clean)
        assert set(question.parts) == {*re.findall(r"\[\w+\]", clean), *sorted_as.split("; ")}


def test_a_word_problem_as_an_order() -> None:
    for question in of("orders+math"):
        order = json.loads(question.want or "")
        assert json.loads(f"{{{','.join(question.parts)}}}") == order
        price = re.search(
            rf"[€$£]{order['price']}\b|\b{order['price']} (dollars|EUR|euros|USD)", question.prompt
        )
        assert price, question
        rest = (
            question.prompt.replace(price[0], "")
            .replace(str(order["customer"]), "")
            .replace(order["item"], "")
        )
        a, b = map(int, re.findall(r"\d+", rest))
        each = "boxes of" in rest or "packets with" in rest
        worked = a * b if each else a - b if "of them were" in rest else a + b
        assert order["qty"] == worked, question
        assert order["qty"] not in (a, b)
        check_orders(f"{question.prompt} {order['qty']}", question.want or "")


def test_a_date_in_a_question_about_a_table() -> None:
    for question in of("sql+dates"):
        select, where, iso = question.parts
        assert question.want == f"{select} {where} '{iso}';"
        CHECKS["sql"](f"{question.prompt} {iso} '{iso}'", question.want)
        prompt = question.prompt.lower()
        day = written_date(prompt)
        if re.search("tomorrow|yesterday", prompt):
            assert WEEKDAYS[day.weekday()].lower() in prompt
            day = wanted_day(prompt, day)
        assert iso == day.isoformat(), question
        assert (" > " in question.want) == ("later than" in prompt)


@pytest.mark.parametrize("task", ["redact+dates", "triage+dates"])
def test_a_date_beside_another_skill(task: str) -> None:
    for question in of(task):
        iso = question.parts[-1]
        assert re.fullmatch(ISO, iso)
        if task == "triage+dates":
            check_triage(question.prompt, (question.want or "").removesuffix(f"; date={iso}"))
            found = re.search(
                r"(?:wrote to you on|essage of) ([\w ,.]*?\d{4}[\w ]*)", question.prompt
            )
            said = found[1] if found else ""
        else:
            said = dict(private_parts(question.prompt, question.want or ""))[iso]
        assert written_date(said.lower()).isoformat() == iso, question
