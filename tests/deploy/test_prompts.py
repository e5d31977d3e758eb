"""The prompts that the demo's gate is trained on."""

from pathlib import Path

from typer.testing import CliRunner

from deploy.demo.__main__ import app
from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import TASKS
from deploy.demo.voices import SPEAKERS, read_spoken
from tta_serve.offline.labelled_prompts import EVERYDAY, Prompts


def test_prompts_are_written_for_every_task_and_none_of_them_split_by_split(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prompts", str(tmp_path), "--n", "6"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    train, validation = (
        Prompts.read(tmp_path / split, TASKS, held_out=True) for split in ("train", "validation")
    )
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
