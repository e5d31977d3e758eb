"""The prompts that the demo's gate is trained on."""

from pathlib import Path

from typer.testing import CliRunner

from deploy.demo.__main__ import app
from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import TASKS
from tta_serve.offline.labelled_prompts import EVERYDAY, Prompts


def test_prompts_are_written_for_every_task_and_none_of_them_split_by_split(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prompts", str(tmp_path), "--n", "6"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    train, validation = (
        Prompts.read(tmp_path / split, TASKS, held_out=True) for split in ("train", "validation")
    )
    for name, task in TASKS.items():
        assert train.experts[name] == [example.prompt for example in task.examples("train", 6, 1)]
        assert validation.experts[name] == [
            example.prompt for example in task.examples("validation", 2, 1)
        ]
    assert (train.everyday, validation.everyday) == (
        read_everyday("train"),
        read_everyday("validation"),
    )
    assert (tmp_path / "train" / f"{EVERYDAY}.txt").exists()
