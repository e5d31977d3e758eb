"""Policies on activations, with experts that read known directions of made states."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.activations import ActivationSelector
from router.policy import Context
from router.probing import Activations, Outputs, Window
from router.registry import create_policy

D, RANK, TOKENS = 24, 3, 6
SITES = ("layers.0.self_attn.qkv", "layers.0.mlp.up", "layers.1.self_attn.qkv", "layers.1.mlp.up")
RULES = MixRules(frozenset("abc"), layers=2)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("activation_norm", {}),
    ("subspace", {"score": "arrow"}),
    ("subspace", {"score": "spectr"}),
    ("subspace", {"score": "mass"}),
]


class KnownActivations:
    """A probe of experts that read known directions of made states.

    A text is a seed, or an expert's name and a seed for states of which much lies in what that
    expert reads.
    """

    def __init__(
        self,
        scales: Mapping[str, float] | None = None,
        leaves: Mapping[str, Sequence[int]] | None = None,
        order: str = "abc",
    ) -> None:
        """Draw the directions.

        Args:
            scales: By expert, of its delta.
            leaves: By expert, the sites that it leaves alone.
            order: Of the experts.
        """
        g = torch.Generator().manual_seed(0)
        rows = {
            name: [torch.linalg.qr(torch.randn(D, RANK, generator=g))[0].T for _ in SITES]
            for name in "abcd"
        }
        self.scales, self.leaves, self.order = scales or {}, leaves or {}, order
        self.rows = rows
        self.states_scale = 1.0

    def states(self, text: str) -> list[Tensor]:
        """Return the states of each site, [tokens, D]."""
        g = torch.Generator().manual_seed(int(text.lstrip("abcd")))
        states = [torch.randn(TOKENS, D, generator=g) for _ in SITES]
        if text[0] in self.rows:
            v1 = [rows[0] for rows in self.rows[text[0]]]
            states = [x + 6 * direction for x, direction in zip(states, v1, strict=True)]
        return [self.states_scale * x for x in states]

    async def activations(self, text: str) -> Activations:
        states = self.states(text)
        tables = torch.full((4, len(self.order), len(SITES)), torch.nan)
        for k, name in enumerate(self.order):
            for s, x in enumerate(states):
                if s not in self.leaves.get(name, ()):
                    tables[:, k, s] = self._scored(
                        x, self.rows[name][s], self.scales.get(name, 1.0)
                    )
        inputs = torch.stack([x.norm(dim=1).mean() for x in states])
        first, second, third, fourth = tables
        return Activations(tuple(self.order), SITES, first, second, third, fourth, inputs)

    @staticmethod
    def _scored(x: Tensor, v: Tensor, scale: float) -> Tensor:
        along = x @ v.T
        singular = scale * torch.tensor([3.0, 2.0, 1.0])
        norm, residual = (along[-1] * singular).norm(), (x - along @ v).norm(dim=1).mean()
        return torch.stack([along[:, 0].abs().mean(), along.norm(dim=1).mean(), norm, residual])

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        raise AssertionError("no features are needed")

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        raise AssertionError("no comparison is needed")


def create(kind: str, probe: KnownActivations, **options: Any) -> ActivationSelector:
    """Create a policy without examples of what an expert is for, as these need none."""
    context = Context(RULES, {}, [str(i) for i in range(40)], probe)
    policy = asyncio.run(create_policy(kind, options, context))
    assert isinstance(policy, ActivationSelector)
    return policy


def route(policy: ActivationSelector, probe: KnownActivations, *texts: str) -> list[Decision]:
    return [asyncio.run(policy.route(Prompt(text), probe)) for text in texts]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_whose_directions_the_states_have_is_chosen_and_everyday_ones_are_not(
    kind: str, options: dict[str, Any]
) -> None:
    probe = KnownActivations()
    policy = create(kind, probe, **options)
    own = [f"{name}{seed}" for name in "abc" for seed in range(100, 104)]
    assert [d.choice for d in route(policy, probe, *own)] == [text[0] for text in own]
    unseen = route(policy, probe, *(str(seed) for seed in range(200, 240)))
    assert sum(d.abstained for d in unseen) >= 34
    assert all(d.abstained == d.mix.is_base == (max(d.scores.values()) < d.floor) for d in unseen)
    assert route(policy, probe, " ")[0].abstained


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_order_of_requests_and_experts_and_the_presence_of_others_change_nothing(
    kind: str, options: dict[str, Any]
) -> None:
    probe, other = KnownActivations(), KnownActivations(order="dcba")
    policy = create(kind, probe, **options)
    texts = ["a7", "b8", "300", "c9"]
    plain = route(policy, probe, *texts)
    assert route(policy, probe, *reversed(texts)) == plain[::-1]
    assert route(create(kind, other, **options), other, *texts) == plain
    assert route(policy, other, *texts) == plain


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_scale_of_an_expert_does_not_win(kind: str, options: dict[str, Any]) -> None:
    plain, loud = KnownActivations(), KnownActivations(scales={"b": 50.0})
    one = route(create(kind, plain, **options), plain, "a1", "b2", "301")
    other = route(create(kind, loud, **options), loud, "a1", "b2", "301")
    for left, right in zip(one, other, strict=True):
        assert left.mix == right.mix
        assert left.scores == pytest.approx(right.scores, rel=1e-4)


@pytest.mark.parametrize("score", ["arrow", "spectr", "mass"])
def test_the_size_of_the_states_does_not_matter_to_a_subspace(score: str) -> None:
    probe = KnownActivations()
    policy = create("subspace", probe, score=score)
    [before] = route(policy, probe, "b1")
    probe.states_scale = 7.0
    assert route(policy, probe, "b1")[0].scores == pytest.approx(before.scores, rel=1e-3)


@pytest.mark.parametrize("score", ["arrow", "spectr", "mass"])
def test_subspace_scores_are_means_of_standardised_shares_of_the_sites_an_expert_reads(
    score: str,
) -> None:
    probe = KnownActivations(leaves={"b": [0, 3]})
    policy = create("subspace", probe, score=score)
    everyday = [asyncio.run(probe.activations(str(i))) for i in range(40)]

    def share(a: Activations, k: int, s: int) -> float:
        value = -a.residual[k, s] if score == "mass" else getattr(a, score)[k, s]
        return float(value / a.inputs[s])

    def expected(a: Activations, k: int, sites: Sequence[int]) -> float:
        z = []
        for s in sites:
            usual = torch.tensor([share(e, k, s) for e in everyday], dtype=torch.float64)
            z.append((share(a, k, s) - float(usual.mean())) / float(usual.std()))
        return sum(z) / len(z)

    now = asyncio.run(probe.activations("b5"))
    by_hand = {
        "a": expected(now, 0, [0, 1, 2, 3]),
        "b": expected(now, 1, [1, 2]),
        "c": expected(now, 2, [0, 1, 2, 3]),
    }
    assert route(policy, probe, "b5")[0].scores == pytest.approx(by_hand, rel=1e-3, abs=1e-3)


def test_the_norm_is_of_the_last_attention_that_all_read_relative_to_everyday() -> None:
    for leaves, site in (({}, 2), ({"a": [2]}, 0), ({"a": [0, 2]}, 3)):
        probe = KnownActivations(leaves=leaves)
        usual = torch.stack([asyncio.run(probe.activations(str(i))).norm for i in range(40)]).mean(
            0
        )
        now = asyncio.run(probe.activations("c4")).norm
        by_hand = dict(zip("abc", (now / usual)[:, site].tolist(), strict=True))
        assert route(create("activation_norm", probe), probe, "c4")[0].scores == pytest.approx(
            by_hand, rel=1e-4
        )


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_floor_is_above_95_of_100_everyday_prompts_unless_it_is_given(
    kind: str, options: dict[str, Any]
) -> None:
    probe = KnownActivations()
    policy = create(kind, probe, **options)
    best = torch.tensor(
        [max(d.scores.values()) for d in route(policy, probe, *(str(i) for i in range(40)))]
    )
    assert policy.floor == pytest.approx(float(best.quantile(0.95)), rel=1e-4)
    assert int((best < policy.floor).sum()) == 38
    low, high = (
        create(kind, probe, threshold=-100.0, **options),
        create(kind, probe, threshold=100.0, **options),
    )
    assert not route(low, probe, "5")[0].abstained
    assert route(high, probe, "a5")[0].abstained


def test_shares_over_the_minimum_count_and_else_the_best_alone() -> None:
    probe = KnownActivations()
    shares = {"a": 0.5, "b": 0.3, "c": 0.15}
    for options, kept in (
        ({}, "ab"),
        ({"top": 1}, "a"),
        ({"minimum": 0.1}, "abc"),
        ({"minimum": 0.6}, "a"),
    ):
        weights = create("subspace", probe, **options).choose_shares(shares)
        assert weights == pytest.approx(
            {name: shares[name] / sum(shares[n] for n in kept) for name in kept}
        )
    assert list(create("activation_norm", probe, top=2).choose_shares(shares)) == ["a", "b"]


def test_coefficients_sum_to_one_and_a_low_temperature_takes_the_best() -> None:
    probe = KnownActivations()
    for temperature, names in ((100.0, "abc"), (1e-3, "a")):
        [decision] = route(create("activation_norm", probe, temperature=temperature), probe, "a3")
        assert "".join(decision.mix.as_dict()) == names
        assert sum(
            c for c in decision.mix.as_dict().values() if isinstance(c, float)
        ) == pytest.approx(1)


def test_where_an_expert_cannot_be_scored_the_error_says_where_it_could() -> None:
    probe = KnownActivations(leaves={"b": [0, 2]})
    with pytest.raises(
        RouterError,
        match=r"b cannot be scored at any of them; .* ending in mlp\.up, self_attn\.qkv",
    ):
        create("subspace", probe, sites="attn.qkv")
    with pytest.raises(RouterError, match="a, b, c cannot be scored"):
        create("activation_norm", probe, sites="o_proj")
    with pytest.raises(RouterError, match="at least 2 everyday prompts"):
        asyncio.run(create_policy("subspace", {}, Context(RULES, {}, ["1"], probe)))


@pytest.mark.parametrize("kind", ["activation_norm", "subspace"])
def test_a_conversation_moves_by_more_than_keep(kind: str) -> None:
    policy, before = create(kind, KnownActivations()), Decision(Mix.of({"b": 1.0}), {"b": 1.0})
    for step, moves in ((0.9, False), (1.1, True)):
        assert (
            policy.should_move(
                before, Decision(Mix.of({"a": 1.0}), {"a": 1.0 + step * policy.keep, "b": 1.0})
            )
            == moves
        )
