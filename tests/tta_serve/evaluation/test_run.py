"""What an evaluation shows of its steps."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from tta_serve.evaluation.run import begin_step


@pytest.mark.parametrize("terminal", [True, False])
def test_where_no_bar_moves_a_step_is_said_when_it_begins(terminal: bool) -> None:
    shown = io.StringIO()
    progress = Progress(console=Console(file=shown, force_terminal=terminal))
    done = begin_step(progress, "answers", 2)
    assert ("answers: 2" in shown.getvalue()) != terminal
    done()
    assert progress.tasks[0].completed == 1
    begin_step(progress, "nothing", 0)
    assert "nothing: 0" not in shown.getvalue()
