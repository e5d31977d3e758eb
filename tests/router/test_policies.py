"""Policies on features with a known answer: a probe that looks a prompt's features up."""

import asyncio

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.policy import Context, Prompt, RouterError
from router.retrieval import RetrievalPolicy
from router.table import POLICIES, check_options, create_policy
from tests.router.test_centroids import clusters


class KnownFeatures:
    """A prompt is the name of a row of features."""

    def __init__(self) -> None:
        features, everyday = clusters()
        self.by_text = {f"{n}{i}": row for n, f in {**features, "e": everyday}.items() for i, row in enumerate(f)}
        self.context = Context(
            rules=MixRules(frozenset("abc"), layers=2),
            examples={n: [f"{n}{i}" for i in range(20)] for n in "abc"},
            everyday=[f"e{i}" for i in range(20)],
            probe=self,
        )

    async def features(self, text: str) -> torch.Tensor:
        return self.by_text[text]


def retrieval(**options: object) -> tuple[RetrievalPolicy, KnownFeatures]:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("retrieval", options, known.context))
    assert isinstance(policy, RetrievalPolicy)
    return policy, known


def test_a_clear_prompt_gets_its_expert_alone_and_an_everyday_one_the_base() -> None:
    policy, known = retrieval()
    for text in ("a3", "b4", "c5"):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of({text[0]: 1.0})
        assert not decision.abstained
        assert set(decision.scores) == set("abc")
    decision = asyncio.run(policy.route(Prompt("e6"), known))
    assert decision.mix.is_base
    assert decision.abstained


def test_between_two_experts_the_mix_holds_both_and_sums_to_one() -> None:
    policy, known = retrieval(temperature=0.5, threshold=-1)
    between = (known.by_text["a1"] + known.by_text["b1"]) / 2
    mix = policy.decide(between).mix.as_dict()
    assert {"a", "b"} <= set(mix)
    assert sum(mix.values()) == pytest.approx(1)
    assert all(c == round(round(c / 0.05) * 0.05, 10) for c in mix.values())


def test_top_bounds_the_experts_of_a_mix() -> None:
    policy, known = retrieval(top=1, temperature=1, threshold=-1)
    assert len(policy.decide(known.by_text["a1"]).mix.coefficients) == 1


def test_without_user_text_it_abstains() -> None:
    policy, known = retrieval()
    assert asyncio.run(policy.route(Prompt("  "), known)).abstained


def test_without_examples_it_says_whose_are_missing() -> None:
    known = KnownFeatures()
    context = Context(known.context.rules, {"a": ["a1"], "b": known.context.examples["b"]}, ["e1"], known)
    with pytest.raises(RouterError, match="too few for: a, c"):
        asyncio.run(create_policy("retrieval", {}, context))


def test_static_is_its_mix() -> None:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("static", {"experts": {"a": 0.5, "b": 0.25}}, known.context))
    assert asyncio.run(policy.route(Prompt("anything"), known)).mix == Mix.of({"a": 0.5, "b": 0.25})


@pytest.mark.parametrize("kind", POLICIES)
def test_an_unknown_option_names_the_known_ones(kind: str) -> None:
    with pytest.raises(RouterError, match="known options: "):
        check_options(kind, {"tresholt": 1})


def test_an_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(RouterError, match="static, retrieval"):
        check_options("magic", {})
