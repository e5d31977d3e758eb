"""What may be said of an experiment, and what may be changed of a running one."""

from typing import Any

import pytest

from tests.factories.experiment_logs import GOOD
from tta_serve.experiments.design.definition import Definition, check_layers
from tta_serve.experiments.errors import ExperimentError


def made(**changes: Any) -> Definition:
    return Definition.parse({**GOOD, **changes})


def test_weights_are_shares() -> None:
    assert made().weights == {"plain": 0.25, "gate": 0.75}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"control": "nobody"}, "control 'nobody' is no arm; there are: plain, gate"),
        ({"arms": [GOOD["arms"][0]]}, "arms"),
        ({"arms": [GOOD["arms"][0], GOOD["arms"][0]]}, "two arms have one name"),
        ({"unit": "cookie"}, "unit"),
        ({"coverage": 0.6, "offset": 0.5}, "more than the whole layer"),
        (
            {"arms": [GOOD["arms"][0], {"name": "x", "policy": "gate", "weight": 0}]},
            r"arms\.1\.weight",
        ),
        ({"start": 10, "stop": 5}, "stops before it starts"),
        ({"bandit": {"explore": 0.6}}, "at most 0.5"),
        ({"metrics": {"primary": {"name": "a"}, "secondary": [{"name": "a"}]}}, "named once"),
        ({"metrics": {"primary": {"name": "a"}, "guardrails": [{"name": "b"}]}}, "tolerated"),
        ({"colour": "red"}, "colour"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_what_cannot_be_says_why(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        made(**changes)


def test_a_running_experiment_may_grow_and_get_an_end_and_nothing_else() -> None:
    running = made(coverage=0.5)
    running.check_change(made(coverage=0.9, stop=1e10))
    with pytest.raises(ExperimentError, match="may rise, not fall"):
        running.check_change(made(coverage=0.4))
    arms = [{**GOOD["arms"][0], "weight": 2}, GOOD["arms"][1]]
    with pytest.raises(ExperimentError, match="keeps its alpha, arms"):
        running.check_change(made(coverage=0.5, arms=arms, alpha=0.01))


def test_experiments_of_one_layer_share_no_units() -> None:
    first, second = made(coverage=0.5), made(name="other", coverage=0.5, offset=0.5)
    check_layers({"gate-or-not": first}, second)
    check_layers({"gate-or-not": first}, made(coverage=0.6))  # itself, grown
    check_layers({"gate-or-not": first}, made(name="other", layer="else"))
    with pytest.raises(
        ExperimentError, match="'gate-or-not' and 'other' would share units of the layer 'routing'"
    ):
        check_layers({"gate-or-not": first}, made(name="other", coverage=0.1, offset=0.45))
