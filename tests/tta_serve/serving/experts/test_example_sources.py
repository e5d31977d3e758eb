"""What policies know of an expert, and what would make it better, in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from adapters.mix import MixRules
from router.policies.retrieval import lacks_examples
from tta_serve.serving.experts.example_sources import describe_sources, find_step


def see(prompts: int, pinned: int) -> Any:
    """Return a view of one expert."""
    return SimpleNamespace(
        catalog=SimpleNamespace(rules=MixRules(frozenset({"a"}), 2), served="demo"),
        digests={"a": "digest"},
        examples={"a": ["x"] * prompts},
        pinned={"a": pinned} if pinned else {},
    )


@pytest.mark.parametrize(
    ("prompts", "pinned", "kept", "says"),
    [
        (48, 0, None, "48 example prompts"),
        (5, 20, 20, "5 example prompts"),
        (0, 12, 13, "12 pinned requests; "),
        (0, 40, 40, "40 pinned requests"),
        (2, 4, 4, "2 example prompts and 4 pinned requests; "),
        (0, 0, 0, "nothing yet, so retrieval never chooses it: send 8 requests with the model"),
        (0, 3, 6, "nothing yet, so retrieval never chooses it (6 pinned requests so far): "),
        (0, 0, None, "nothing: give it an examples.txt of at least 5 prompts, or set library"),
        (3, 0, None, "3 example prompts: give it an examples.txt of at least 5 prompts, or set"),
    ],
)
def test_it_is_said_what_is_in_force_and_what_would_be_better(
    prompts: int, pinned: int, kept: int | None, says: str
) -> None:
    view = see(prompts, pinned)
    (found,) = describe_sources(view, None if kept is None else lambda digest: kept)
    assert found.says.startswith(says)
    assert (found.expert, found.prompts) == ("a", prompts)
    assert found.pinned == (pinned if lacks_examples("a", view.examples) else 0)


def test_steps_double() -> None:
    steps = [find_step(count) for count in (0, 7, 8, 15, 16, 31, 32, 63, 64, 128)]
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]
