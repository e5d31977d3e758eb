"""What an answer is worth: functions of the user, judges, wanted answers."""

import asyncio
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.factories.http_handler import serve_handler
from tta_serve.evaluation.questions import Question, read_suite
from tta_serve.search.errors import SearchError
from tta_serve.search.judge import Judge
from tta_serve.search.objectives import (
    check_wanted,
    load_function,
    measure_exact,
    measure_graded,
)
from tta_serve.search.split import name_group, split_questions

ASKED = Question("search", "2 + 2?", "4", kind="tokens")


def test_a_function_of_the_user_measures_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_measure.py").write_text(
        "def measure(question, answer):\n    return len(answer) / len(question.prompt)\n"
        "def fail(question, answer):\n    return 'good'\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert asyncio.run(load_function("own_measure:measure")(ASKED, "four")) == pytest.approx(4 / 6)
    with pytest.raises(SearchError, match="returned 'good', which is no finite number"):
        asyncio.run(load_function("own_measure:fail")(ASKED, "four"))


@pytest.mark.parametrize("place", ["best", "own_measure:gone", "no_such_module:f", ":f"])
def test_a_function_that_is_not_there_gets_the_objectives_named(place: str) -> None:
    with pytest.raises(SearchError, match="wanted is graded, exact, logprob, judge or"):
        load_function(place)


def test_wanted_answers_are_compared_with() -> None:
    assert asyncio.run(measure_exact(ASKED, " 4 ")) == 1
    assert asyncio.run(measure_graded(ASKED, "4 4")) == pytest.approx(2 / 3)
    with pytest.raises(SearchError, match="has no wanted answer"):
        check_wanted([ASKED, Question("search", "Hello")])


class Rater(BaseHTTPRequestHandler):
    """Rates by the length of the answer, and cannot rate `?`."""

    asked: list[str] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][0]["content"]
        Rater.asked.append(text)
        answer = text.rpartition("Answer:\n")[2]
        reply = "I do not know" if answer == "?" else f"Rating: {len(answer)}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
        choice["message"] = {"role": "assistant", "content": reply}
        sent = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_rates_equal_answers_once_by_its_rubric() -> None:
    Rater.asked.clear()
    with serve_handler(Rater) as url:

        async def rate(*answers: str) -> list[float]:
            judge = Judge(f"{url}/v1", "rater", "Count the letters.")
            return [await judge.rate(ASKED, answer) for answer in answers]

        assert asyncio.run(rate("four", "fo", "four")) == [0.4, 0.2, 0.4]
        with pytest.raises(SearchError, match="'I do not know', where a number from 0 to 10"):
            asyncio.run(rate("?"))
        with pytest.raises(SearchError, match="'Rating: 11'"):
            asyncio.run(rate("x" * 11))
    assert len(Rater.asked) == 4
    assert Rater.asked[0].startswith("Count the letters.")
    assert "A perfect answer:\n4" in Rater.asked[0]


def test_questions_that_name_no_slice_are_of_the_search(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a", "want": "b"}\n{"prompt": "c", "task": "sql"}', "utf-8")
    suite = read_suite(file, "search")
    assert [name_group(question) for question in suite.questions] == ["search", "sql"]


def test_a_share_of_each_task_is_held_out() -> None:
    asked = [Question("search", f"{task} {n}", "x", task) for task in "ab" for n in range(8)]
    split = split_questions([*asked, *asked], 0.25, 0)
    assert not set(split.searched) & set(split.held_out)
    assert sorted(map(name_group, split.held_out)) == ["a"] * 2 + ["b"] * 2
    assert len(split.searched) == 12
    few = split_questions(asked, 0.25, 0, 4)
    assert sorted(map(name_group, few.searched)) == ["a", "a", "b", "b"]
    assert few.held_out == split.held_out
    assert split_questions(asked, 0.25, 1) != split
    with pytest.raises(SearchError, match="two different questions"):
        split_questions([asked[0], asked[0]], 0.5, 0)
