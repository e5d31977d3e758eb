"""Policies on features with a known answer: a probe that looks a prompt's features up."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.policy import Activations, Context, Decision, Outputs, Prompt, RouterError, Window
from router.retrieval import RetrievalPolicy
from router.table import POLICIES, check_options, create_policy
from tests.router.test_centroids import clusters


class KnownFeatures:
    """A prompt is the name of a row of features: a0, a1, ... are prompts of expert a, e0, ... everyday ones."""

    def __init__(self, names: str = "abc", spread: float = 0.3) -> None:
        self.clusters, self.everyday = clusters(names=names, spread=spread)
        rows = {**self.clusters, "e": self.everyday}
        self.by_text = {f"{n}{i}": row for n, f in rows.items() for i, row in enumerate(f)} | {"Hello": self.everyday[0]}
        self.context = Context(
            rules=MixRules(frozenset(names), layers=2),
            examples={n: [f"{n}{i}" for i in range(20)] for n in names},
            everyday=[f"e{i}" for i in range(20)],
            probe=self,
            digests={n: n * 64 for n in names},
        )

    async def features(self, text: str, *, chat: bool = False) -> torch.Tensor:
        return self.by_text[text]

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        raise AssertionError("no policy here compares")

    async def activations(self, text: str) -> Activations:
        raise AssertionError("no policy here reads activations")


def without(context: Context, name: str) -> Context:
    """The library after an expert is gone."""
    kept = context.rules.names - {name}
    return replace(context, rules=replace(context.rules, names=kept), digests={n: context.digests[n] for n in kept})


def retrieval(names: str = "abc", **options: object) -> tuple[RetrievalPolicy, KnownFeatures]:
    known = KnownFeatures(names)
    policy = asyncio.run(create_policy("retrieval", options, known.context))
    assert isinstance(policy, RetrievalPolicy)
    return policy, known


def between(known: KnownFeatures) -> torch.Tensor:
    """What lies between a and b, nearer to a."""
    return 0.55 * known.by_text["a1"] + 0.45 * known.by_text["b1"]


def test_a_clear_prompt_gets_its_expert_alone_and_an_everyday_one_the_base() -> None:
    policy, known = retrieval()
    for text in ("a3", "b4", "c5"):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of({text[0]: 1.0})
        assert not decision.abstained
        assert decision.choice == text[0]
        assert set(decision.scores) == set("abc")
    decision = asyncio.run(policy.route(Prompt("e6"), known))
    assert decision.mix.is_base
    assert decision.abstained
    assert decision.lead("a") > 0, "the base is ahead of what it was chosen over"


@pytest.mark.parametrize("mode", ["top1", "top3", "sparse"])
def test_shares_are_those_of_the_mode(mode: str) -> None:
    policy, known = retrieval("abcdf", mode=mode, temperature=0.4, threshold=-2, minimum=0.1)
    selection = policy.selected(between(known))
    shares = torch.tensor(list(selection.scores.values())).div(0.4).softmax(0)
    kept = shares > 0.1 if mode == "sparse" else shares >= shares.topk(int(mode[-1])).values.min()
    assert 0 < kept.sum() < 5, "or nothing is cut here"
    wanted = torch.where(kept, shares, 0.0) / shares[kept].sum()
    assert [selection.weights.get(n, 0.0) for n in "abcdf"] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert next(iter(selection.weights)) == "a"
    coefficients = policy.decided(selection).mix.as_dict().values()
    assert sum(coefficients) == pytest.approx(1)
    assert all(c == round(round(c / 0.05) * 0.05, 10) for c in coefficients)


def test_renaming_experts_renames_their_shares() -> None:
    policy, known = retrieval(mode="sparse", temperature=0.5, threshold=-2)
    new = dict(zip("abc", "bca", strict=True))
    context = replace(known.context, examples={new[n]: known.context.examples[n] for n in "abc"})
    renamed = asyncio.run(RetrievalPolicy.create(policy.Options(mode="sparse", temperature=0.5, threshold=-2), context))
    weights = policy.selected(between(known)).weights
    assert renamed.selected(between(known)).weights == pytest.approx({new[n]: w for n, w in weights.items()})


def test_a_conversation_moves_when_another_margin_is_ahead_by_more_than_keep() -> None:
    policy, _ = retrieval(keep=0.25)
    before = Decision(Mix(), {"a": 0.9, "b": 0.1}, floor=0.2)
    assert not policy.moved(before, replace(before, scores={"a": 0.8, "b": 0.3}))
    assert not policy.moved(before, replace(before, scores={"a": 0.5, "b": 0.7}))
    assert policy.moved(before, replace(before, scores={"a": 0.5, "b": 0.8}))
    assert not policy.moved(before, replace(before, scores={"a": 0.1, "b": 0.0}, abstained=True))
    assert policy.moved(before, replace(before, scores={"a": -0.1, "b": 0.0}, abstained=True))
    assert policy.moved(replace(before, abstained=True), before), "from the base to an expert far above the floor"


def test_without_user_text_it_abstains() -> None:
    policy, known = retrieval()
    assert asyncio.run(policy.route(Prompt("  "), known)).abstained


@pytest.mark.parametrize(
    ("examples", "everyday", "says"),
    [({"a": ["a1"]}, 20, "too few for: a, c"), ({}, 4, "at least 5 everyday prompts")],
)
def test_without_prompts_to_learn_from_it_says_which_are_missing(
    examples: dict[str, list[str]], everyday: int, says: str
) -> None:
    context = KnownFeatures().context
    theirs = {"b": context.examples["b"], **examples} if examples else context.examples
    with pytest.raises(RouterError, match=says):
        asyncio.run(create_policy("retrieval", {}, replace(context, examples=theirs, everyday=context.everyday[:everyday])))


def test_without_experts_it_says_what_to_choose_instead() -> None:
    context = without(KnownFeatures("a").context, "a")
    with pytest.raises(RouterError, match="choose the policy 'static'"):
        asyncio.run(create_policy("retrieval", {}, context))


@pytest.mark.parametrize("kind", POLICIES)
def test_an_unknown_option_names_the_known_ones(kind: str) -> None:
    with pytest.raises(RouterError, match="known options: "):
        check_options(kind, {"tresholt": 1})


def test_an_unknown_type_or_selector_names_the_known_ones() -> None:
    with pytest.raises(RouterError, match="unknown policy type 'magic'; there are: static, retrieval, gate"):
        check_options("magic", {})
    with pytest.raises(RouterError, match="unknown selector 'static'; there are: retrieval, gate, activation_norm, subspace"):
        check_options("random_control", {"like": "static"})
