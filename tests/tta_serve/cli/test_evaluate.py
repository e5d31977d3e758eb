"""Which arms `tta eval` judges."""

import pytest

from tests.conftest import ROOT
from tta_serve.cli.evaluate import list_wanted
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError


@pytest.fixture
def demo() -> ServeConfig:
    return load(ROOT / "deploy/demo/serve.yaml", {})


def test_a_quick_evaluation_has_a_gate_and_a_retrieval_beside_the_default(
    demo: ServeConfig,
) -> None:
    quick = list_wanted(demo, "", quick=True, every=False)
    assert quick == ("expert", "static", "inline", "gate", "retrieval")
    assert list_wanted(demo, "", quick=True, every=True) == ()
    assert list_wanted(demo, "", quick=False, every=False) == ()


def test_arms_that_are_named_are_judged_beside_the_default(demo: ServeConfig) -> None:
    assert list_wanted(demo, "dawin, expert", quick=True, every=False) == (
        "dawin",
        "expert",
        "inline",
    )
    with pytest.raises(ConfigError, match="leave out one of them"):
        list_wanted(demo, "dawin", quick=False, every=True)
