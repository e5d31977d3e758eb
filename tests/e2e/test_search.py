"""`tta search` on the running demo: a mix that is known is found, stored and compared."""

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from adapters.library.entries import ENTRIES, read_entries
from deploy.demo.tasks import TASKS
from tests.conftest import ROOT
from tests.e2e.conftest import ADMIN_KEY, Demo

HIDDEN = {"dates": 0.9}


@pytest.fixture(scope="module")
def questions(client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return questions whose wanted answers are those of a mix."""
    file = tmp_path_factory.mktemp("search") / "questions.jsonl"
    rows = []
    for example in TASKS["dates"].examples("validation", 6, 3):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": example.prompt}],
            temperature=0,
            max_tokens=96,  # to their end: a wanted answer that is cut is reached by nobody
            extra_body={"merge": {"experts": HIDDEN}},
        )
        want = answer.choices[0].message.content
        rows.append({"prompt": example.prompt, "want": want, "kind": "tokens"})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def search(demo: Demo, questions: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tta_serve.cli.main", "search", str(questions)]
    where = ["--url", demo.url, "--experts", "dates,math,sql"]
    return subprocess.run(
        [*command, *where, *options],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "", "HOME": str(Path.home()), "TTA_ADMIN_KEY": ADMIN_KEY},
        timeout=600,
    )


def test_a_search_finds_what_answered_and_stores_it(
    demo: Demo, questions: Path, tmp_path: Path
) -> None:
    options = ["--requests", "60", "--out", str(tmp_path / "out"), "--name", "found-here"]
    library = ["--library", str(demo.experts)]
    done = search(demo, questions, *options, *library)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["score"] >= 0.95
    assert line["requests"] <= 60
    assert {"base", "found", "expert sql", "uniform", "policy inline"} <= line["held_out"].keys()

    # It is in the library, with its scores, and goes on where it was.
    entry = read_entries(demo.experts / ENTRIES)["found-here"]
    assert entry.source["score"] == pytest.approx(line["score"], abs=1e-3)
    assert "dates" in entry.coefficients
    (demo.experts / ENTRIES / "found-here.json").unlink()
    journal = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert (tmp_path / "out" / "history.png").stat().st_size > 1000
    again = json.loads(search(demo, questions, *options, *library).stdout.splitlines()[-1])
    (demo.experts / ENTRIES / "found-here.json").unlink()
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == journal
    assert again["score"] == line["score"]
    assert again["candidates_hour"] is None


def test_log_probabilities_are_searched_by(demo: Demo, questions: Path, tmp_path: Path) -> None:
    options = ["--objective", "logprob", "--requests", "24", "--out", str(tmp_path)]
    done = search(demo, questions, *options, "--by", "third", "--algorithm", "frank_wolfe")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["best_single"] == "dates"
    assert -1 < line["score"] <= 0
    assert line["held_out"]["base"][0] < line["held_out"]["expert dates"][0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--requests", "5"], "the budget must reach for 5 candidates"),
        (["--requests", "50", "--high", "3"], "mix.maximum 2"),
        (["--requests", "50", "--algorithm", "climb"], "there is no algorithm 'climb'"),
        (["--requests", "50", "--name", "sql"], "experts have their own names"),
        (["--requests", "50", "--objective", "good"], "wanted is graded, exact"),
        ([], "give a budget"),
    ],
)
def test_wrong_words_end_in_one_sentence(
    demo: Demo, questions: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    done = search(demo, questions, "--out", str(tmp_path), *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
