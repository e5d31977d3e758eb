"""The prompts that the demo's gate is trained on."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.demo.__main__ import app
from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import TASKS
from deploy.demo.tasks.both import draw_requests
from deploy.demo.voices import SPEAKERS, read_spoken
from tta_serve.exceptions import PromptFileError
from tta_serve.offline.labelled_prompts import EVERYDAY, Prompts


def test_prompts_are_written_for_every_task_and_none_of_them_split_by_split(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["prompts", str(tmp_path), "--n", "6", "--both", "80"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    train = Prompts.read(tmp_path / "train", TASKS)
    validation = Prompts.read(tmp_path / "validation", TASKS, held_out=True)
    assert train.both == {tuple(pair.split("+")): own for pair, own in draw_requests(80, 1).items()}
    assert all(len(set(own)) > 70 for own in train.both.values())
    spoken = read_spoken(SPEAKERS)
    assert all(train.experts[name][6:] for name in TASKS)
    assert sum(len(own) - 6 for own in train.experts.values()) == sum(
        one.task is not None for one in spoken
    )
    for name, task in TASKS.items():
        assert train.experts[name][:6] == [example.line for example in task.examples("train", 6, 1)]
        assert validation.experts[name] == [
            example.line for example in task.examples("validation", 2, 1)
        ]
    everyday = read_everyday("train")
    assert train.everyday[: len(everyday)] == everyday
    assert set(train.everyday[len(everyday) :]) <= {
        " ".join(one.prompt.split()) for one in spoken if one.task is None
    }
    assert validation.everyday == read_everyday("validation")
    assert (tmp_path / "train" / f"{EVERYDAY}.txt").exists()


@pytest.mark.parametrize(("name", "says"), [("sql+sql", "sql+sql.txt"), ("sql+x", "sql+x.txt")])
def test_prompts_of_two_experts_that_there_are_not_are_refused(
    tmp_path: Path, name: str, says: str
) -> None:
    for stem in ("sql", "math", "math+sql", name):
        (tmp_path / f"{stem}.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(PromptFileError, match=re.escape(says)):
        Prompts.read(tmp_path, ["sql", "math"])
    (tmp_path / f"{name}.txt").unlink()
    assert Prompts.read(tmp_path, ["sql", "math"]).both == {("math", "sql"): ["one"]}
