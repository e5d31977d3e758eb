"""`tta eval`: an answer's credit is what is right in it; a suite's mistakes are named."""

import json
from pathlib import Path

import pytest

from tta_serve.evaluation.questions import Question, Suite, read_suite
from tta_serve.evaluation.scoring import Score, score
from tta_serve.exceptions import ConfigError

ORDER = '{"customer":7,"item":"1-A","qty":2,"price":3.50}'


@pytest.mark.parametrize(
    ("kind", "want", "answer", "graded"),
    [
        ("exact", "four", "five", 0),
        (
            "json",
            ORDER,
            '{"price": 3.5, "qty": 2, "item": "1-A", "customer": 7}',
            1,
        ),  # equal as JSON, not as text
        ("json", ORDER, '{"customer":7,"item":"1-A","qty":3,"price":3.50}', 3 / 4),
        ("json", ORDER, '{"customer":7,"item":"1-A","qty":2,"price":3.50,"colour":1}', 4 / 5),
        ("json", '{"a":1}', '{"a":true}', 0),
        ("json", ORDER, "seven", 0),
        ("json", ORDER, "[7]", 0),
        ("sql", "SELECT a FROM t;", "select a from t;", 1),
        ("sql", "SELECT a FROM t;", "SELECT b FROM t;", 4 / 5),
        ("sql", "SELECT a FROM t;", "SELECT a FROM t WHERE a", 2 * 4 / (5 + 6)),
        ("sql", "SELECT a FROM t;", "", 0),
        ("lines", "2 + 2 = 4\nAnswer: 4", "2 + 2 = 5\nAnswer: 4", 1 / 2),
        ("lines", "2 + 2 = 4\nAnswer: 4", "Answer: 4", 0),  # in the wrong place
        ("lines", "4", "4\n4\n4", 1 / 3),
        ("worked", "3 * 2 = 6\nAnswer: 6", "3 * 2 = 6\nAnswer: 5", 1 / 2),
        ("worked", "3 * 2 = 6\nAnswer: 6", "Answer: 6.", 0),
        ("tokens", "category=bug; priority=high", "category=bug; priority=normal", 1 / 2),
        ("tokens", "a a b", "a b b", 2 * 2 / 6),  # as multisets
    ],
)
def test_graded_is_what_is_right_of_an_answer(
    kind: str, want: str, answer: str, graded: float
) -> None:
    assert score(kind, want, (), answer) == Score(0, graded)
    assert score(kind, want, (), f" {want}\n") == Score(1, 1)


def test_what_is_worked_out_otherwise_is_right_by_its_last_line() -> None:
    want = "3 * 12\n3 * 10 = 30\n3 * 2 = 6\n30 + 6 = 36\nAnswer: 36"
    assert score("worked", want, (), "12 * 3 = 36\nAnswer: 36\n") == Score(1, 1)
    assert score("lines", want, (), "12 * 3 = 36\nAnswer: 36").exact == 0


@pytest.mark.parametrize(
    ("answer", "graded"),
    [
        ("hello [NAME], category=bug", 1),
        ("category=bug", 1 / 2),
        ("[NAME] category=bugs", 1 / 2),  # another word
        ("", 0),
    ],
)
def test_parts_count_alike_wherever_they_stand(answer: str, graded: float) -> None:
    assert score("parts", "whatever", ("[NAME]", "category=bug"), answer) == Score(
        float(graded == 1), graded
    )


@pytest.mark.parametrize(
    ("answer", "found"), [("qty 2", 1), ("qty 2, or more.", 1), ("12", 0), ("2.5", 0), ("20", 0)]
)
def test_a_number_is_not_found_in_another(answer: str, found: float) -> None:
    assert score("parts", "", ("2",), answer).graded == found


def test_a_suite_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "suite.jsonl"
    rows = [
        {"slice": "mixed", "prompt": "a", "want": "b", "task": "sql"},
        {
            "slice": "two_skills",
            "prompt": "c",
            "want": "d",
            "task": "sql+math",
            "parts": ["e"],
            "kind": "parts",
        },
        {"slice": "everyday", "prompt": "f"},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    suite = read_suite(file)
    assert [q.tasks for q in suite.questions] == [("sql",), ("sql", "math"), ()]
    with pytest.raises(ConfigError, match="asks for math; the library serves: sql"):
        suite.check(["sql"])
    for wrong, said in (
        ('{"slice": "mixed"}', "line 1: prompt: "),
        ("no JSON", "line 1: the line: Invalid JSON"),
        ('{"slice": "mixed", "prompt": "a", "colour": 1}', "line 1: colour: "),
        (
            '{"slice": "mixed", "prompt": "a", "kind": "best"}',
            "there is no kind 'best'; there are: exact, json",
        ),
        ('{"slice": "mixed", "prompt": "a", "kind": "parts"}', "wants at least one part"),
        ('{"slice": "mixed", "prompt": "a", "kind": "match"}', "rule is wanted for the kind match"),
        ('{"slice": "mixed", "prompt": "a", "rule": {}}', "rule is wanted for the kind match"),
        ("", "holds no question"),
    ):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            read_suite(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_suite(tmp_path / "none")


def test_a_thinned_slice_keeps_the_same_share_of_every_task() -> None:
    suite = Suite(
        tuple(Question("mixed", str(n), "w", "sql" if n < 30 else "math") for n in range(40))
    )
    few = suite.thin(range(40), 8)
    assert sum(n < 30 for n in few) == 6
    assert len(few) == 8
    assert suite.thin(range(40), 100) == list(range(40))
