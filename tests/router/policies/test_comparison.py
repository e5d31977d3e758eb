"""Policies that compare predictions, on divergences, entropies and losses that are known."""

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.comparison import Unselected
from router.policies.dawin import DawinPolicy, Habit
from router.policies.prompt_nll import PromptNllPolicy
from router.policies.selector import Selection, Selector
from router.policies.t3 import DisagreementEdge, T3Policy
from router.policies.t3_batch import T3BatchPolicy
from router.policy import Context, Policy
from router.probing import Activations, Outputs, Probe, Window
from router.registry import check_options, create_policy, find_forms
from tests.factories.known_features import make_clusters

RULES = MixRules(frozenset("abcd"), layers=2, grid=1e-4)
LN2 = math.log(2)


class KnownOutputs:
    """A probe whose outputs are known.

    Its js (bits), entropy and nll are of the name, or of the text and the name where that differs.
    """

    def __init__(self, **known: Mapping[Any, float]) -> None:
        self.known = known
        self.asked: list[tuple[str, tuple[str, ...], Window]] = []

    def of(self, what: str, text: str, names: Sequence[str]) -> torch.Tensor:
        table = self.known.get(what, {})
        return torch.tensor([table.get((text, name), table.get(name, 0.0)) for name in names])

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        assert all(c.as_dict() == {name: 1.0} for c in candidates for name in c.as_dict())
        names = [name for c in candidates for name in c.as_dict()]
        self.asked.append((prompt.user_turn, tuple(names), window))
        js, rows, text = (
            self.of("js", prompt.user_turn, names) * LN2,
            ["base", *names],
            prompt.user_turn,
        )
        return Outputs(js, self.of("entropy", text, rows), self.of("nll", text, rows), window.last)

    async def features(self, text: str, *, chat: bool = False) -> torch.Tensor:
        features, everyday = make_clusters()
        return {**features, "e": everyday}[text[0]][int(text[1:])]

    async def activations(self, text: str) -> Activations:
        raise NotImplementedError


class FixedSelector(Selector):
    """A selector that knows the answer."""

    keep = 0.1

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(RULES)
        self.weights = weights

    @classmethod
    async def create(cls, options: Any, context: Context) -> "FixedSelector":
        raise NotImplementedError

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        return Selection(self.weights, {"a": 0.5, "b": 0.4, "c": 0.12}, 0.2, "fixed")


def make_policy(
    cls: type[Policy], weights: Mapping[str, float], probe: KnownOutputs, **options: Any
) -> Any:
    """Make a policy over a selector that answers `weights`.

    It is calibrated on 8 prompts a0 ... a7 of expert a, and so on.
    """

    async def make() -> Any:
        policy: Any = cls
        policy = policy(cls.Options(**options), RULES, FixedSelector(weights))
        await policy.calibrate(
            Context(RULES, {n: [f"{n}{i}" for i in range(8)] for n in RULES.names}, [], probe)
        )
        return policy

    return asyncio.run(make())


def route(policy: Policy, probe: KnownOutputs, prompt: Prompt | None = None) -> Decision:
    return asyncio.run(policy.route(prompt or Prompt("x"), probe))


def read_coefficients(decision: Decision) -> dict[str, float]:
    return {name: c for name, c in decision.mix.as_dict().items() if isinstance(c, float)}


def near(expected: Mapping[str, float]) -> Any:
    return pytest.approx(dict(expected), abs=2e-4)


# What all share.

KINDS = [PromptNllPolicy, T3Policy, T3BatchPolicy, DawinPolicy]
PLAIN = {
    "entropy": {"base": 2.0, "a": 1.0, "b": 1.5, "c": 1.7},
    "nll": {"base": 3.0, "a": 2.0, "b": 2.5, "c": 2.6},
}


@pytest.mark.parametrize("cls", KINDS)
def test_where_the_selector_abstains_nothing_is_compared(cls: type[Policy]) -> None:
    probe = KnownOutputs(**PLAIN)
    policy = make_policy(cls, {}, probe)
    probe.asked.clear()
    decision = route(policy, probe)
    assert isinstance(decision, Unselected)
    assert (decision.mix, decision.abstained, decision.reason, decision.floor) == (
        Mix(),
        True,
        "fixed",
        0.2,
    )
    assert route(policy, probe, Prompt(" ")).abstained
    assert not probe.asked
    # The base is ahead of c by 0.08: more than some of the policies keep, but less than the
    # selector whose scores these are.
    before = Decision(Mix(), {"c": 1.0})
    assert not policy.should_move(before, decision)
    assert policy.should_move(Decision(Mix(), {"d": 1.0}), decision)


@pytest.mark.parametrize("cls", KINDS)
def test_the_best_of_the_shortlist_are_compared_once_over_the_window(cls: type[Policy]) -> None:
    probe = KnownOutputs(**PLAIN)
    policy = make_policy(
        cls, {"c": 0.4, "a": 0.35, "b": 0.25}, probe, shortlist=2, window={"last": 9, "draft": 2}
    )
    probe.asked.clear()
    first = route(policy, probe)
    assert probe.asked == [("x", ("a", "c"), Window(9, 2))]
    assert set(read_coefficients(first)) == {"a", "c"}
    assert route(policy, probe) == first


@pytest.mark.parametrize("cls", KINDS)
def test_names_of_experts_do_not_matter(cls: type[Policy]) -> None:
    table = {"js": {"a": 0.1, "b": 0.3}, **PLAIN}
    swap = {"a": "b", "b": "a"}
    swapped = {
        what: {swap.get(n, n): v for n, v in values.items()} for what, values in table.items()
    }
    plain = read_coefficients(
        route(make_policy(cls, {"a": 0.7, "b": 0.3}, KnownOutputs(**table)), KnownOutputs(**table))
    )
    other = read_coefficients(
        route(
            make_policy(cls, {"b": 0.7, "a": 0.3}, KnownOutputs(**swapped)), KnownOutputs(**swapped)
        )
    )
    assert near(plain) == {swap[n]: c for n, c in other.items()}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("t3", {"selector": "magic"}, "unknown selector 'magic'; there are: retrieval"),
        ("t3", {"selector_options": {"mood": 1}}, "mood: .*known options: mode"),
        ("t3", {"lam_min": 0.5, "lam_max": 0.4}, "lam_max: .* not be below lam_min"),
        ("t3", {"window": {"first": 3}}, "window.first"),
        ("t3", {"preset": "t3-paper"}, "preset: .*'t3-paper' is called 't3-own-bounds' now"),
        ("prompt_nll", {"window": {"last": 1}}, "look at 2 or more"),
        ("dawin", {"offset": True, "calibrate_on": 1}, "2 prompts or more"),
    ],
)
def test_options_that_cannot_be(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        check_options(kind, options)


def test_with_the_real_selector() -> None:
    rules = MixRules(frozenset("abc"), layers=2)
    probe = KnownOutputs(js={"a": 0.0})
    context = Context(
        rules,
        {n: [f"{n}{i}" for i in range(20)] for n in "abc"},
        [f"e{i}" for i in range(20)],
        probe,
    )
    policy = asyncio.run(create_policy("t3", {"selector_options": {"mode": "top1"}}, context))
    assert route(policy, probe, Prompt("a3")).mix == Mix.of({"a": 0.5})
    assert route(policy, probe, Prompt("e3")).abstained
    assert [names for _, names, _ in probe.asked] == [("a",)]
    few = Context(rules, {**context.examples, "b": ["b1"] * 6}, context.everyday, probe)
    with pytest.raises(RouterError, match=r"8 example prompts an expert .* too few for: b"):
        asyncio.run(create_policy("t3", {"preset": "t3-calibrated"}, few))


# prompt_nll

EVEN = {"a": 0.5, "b": 0.5}


def test_likelihood_is_a_softmax_in_which_the_base_has_its_share() -> None:
    probe = KnownOutputs(nll={"base": 2.0, "a": 1.8, "b": 2.5})
    decision = route(make_policy(PromptNllPolicy, EVEN, probe, temperature=0.5), probe)
    powers = {n: math.exp(-v / 0.5) for n, v in probe.known["nll"].items()}
    total = sum(powers.values())
    assert read_coefficients(decision) == near({"a": powers["a"] / total, "b": powers["b"] / total})
    assert decision.scores == pytest.approx({"a": -1.8, "b": -2.5})
    assert decision.floor == pytest.approx(-2.0)
    assert not decision.abstained


def test_a_prompt_that_is_harder_for_everybody_changes_nothing() -> None:
    easy, hard = (
        KnownOutputs(nll={"base": 2.0, "a": 1.8, "b": 2.5}),
        KnownOutputs(nll={"base": 5.0, "a": 4.8, "b": 5.5}),
    )
    plain = read_coefficients(route(make_policy(PromptNllPolicy, EVEN, easy), easy))
    assert read_coefficients(route(make_policy(PromptNllPolicy, EVEN, hard), hard)) == near(plain)


def test_it_abstains_if_nothing_is_left_beside_the_base_or_known() -> None:
    worse = KnownOutputs(nll={"base": 1.0, "a": 9.0, "b": 9.0})
    decision = route(make_policy(PromptNllPolicy, EVEN, worse), worse)
    assert decision.abstained
    assert decision.mix.is_base
    short = KnownOutputs(nll={"base": math.nan, "a": math.nan, "b": math.nan})
    assert route(make_policy(PromptNllPolicy, EVEN, short), short).abstained


def test_a_conversation_moves_by_more_than_keep() -> None:
    probe = KnownOutputs(nll={"base": 2.0, "a": 1.0, "b": 1.04})
    policy = make_policy(PromptNllPolicy, EVEN, probe)
    before = Decision(Mix.of({"b": 1.0}), {"b": 1.0, "a": 0.0})
    assert not policy.should_move(before, route(policy, probe))
    probe = KnownOutputs(nll={"base": 2.0, "a": 1.0, "b": 1.06})
    assert policy.should_move(before, route(policy, probe))


# t3

DIRECTIONS = ["base_on_disagreement", "expert_on_disagreement"]


def route_t3(js: float, **options: Any) -> float:
    probe = KnownOutputs(js={"a": js})
    return read_coefficients(route(make_policy(T3Policy, {"a": 1.0}, probe, **options), probe)).get(
        "a", 0.0
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_t3_with_its_own_bounds_is_between_a_half_and_0_62_of_its_range(direction: str) -> None:
    expert = direction == "expert_on_disagreement"
    assert route_t3(0.0, direction=direction) == pytest.approx(0.5)
    assert route_t3(1.0, direction=direction) == pytest.approx(
        0.6225 if expert else 0.3775, abs=1e-4
    )
    middle = (0.2 + 0.6) / 2
    assert route_t3(0.0, direction=direction, lam_min=0.2, lam_max=0.6) == pytest.approx(
        middle if expert else 1 - middle
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_t3_is_monotone_in_disagreement_and_the_directions_add_up(direction: str) -> None:
    ramp = [route_t3(js / 10, direction=direction, gamma=9, tau=0.4) for js in range(11)]
    assert ramp == sorted(ramp, reverse=direction == "base_on_disagreement")
    assert len(set(ramp)) == 11
    other = DIRECTIONS[1 - DIRECTIONS.index(direction)]
    assert route_t3(0.3, direction=direction, gamma=9) + route_t3(
        0.3, direction=other, gamma=9
    ) == pytest.approx(1)


def test_calibrated_t3_knows_each_expert_at_home() -> None:
    at_home = {
        (f"{n}{i}", n): base + i / 100
        for n, base in {"a": 0.1, "b": 0.5, "c": 0.9}.items()
        for i in range(8)
    }
    at_home |= {(f"d{i}", "d"): 0.3 for i in range(8)}
    for js, trust in (({"a": 0.135, "b": 0.535}, 0.9), ({"a": 0.1665, "b": 0.5665}, 0.5)):
        probe = KnownOutputs(js={**at_home, **js})
        decision = route(
            make_policy(T3Policy, {"a": 0.6, "b": 0.4}, probe, preset="t3-calibrated"), probe
        )
        assert read_coefficients(decision) == pytest.approx(
            {"a": 0.6 * trust, "b": 0.4 * trust}, abs=1e-3
        )
    policy = make_policy(T3Policy, {"a": 1.0}, KnownOutputs(js=at_home), preset="t3-calibrated")
    assert policy.trust("d", 0.3005) == pytest.approx(
        0.3775, abs=1e-3
    )  # never varies: 1000 a bit, and not endlessly steep
    assert policy.trust("d", -1e6) == 1.0
    assert policy.trust("d", 1e6) == 0.0
    paper = make_policy(
        T3Policy, {"a": 1.0}, KnownOutputs(), preset="t3-calibrated", gamma=0.5, tau=0.0
    )
    assert paper.trust("a", 0.0) == 0.5


def test_an_edge_is_half_at_its_tau_and_a_tenth_at_the_median() -> None:
    js = torch.rand(50, generator=torch.Generator().manual_seed(0))
    edge = DisagreementEdge.from_home(js)
    g = [1 / (1 + math.exp(-edge.gamma * (float(js.quantile(q)) - edge.tau))) for q in (0.95, 0.5)]
    assert g == pytest.approx([0.5, 0.1], abs=1e-4)


def test_t3_compares_only_experts_with_a_share_on_the_grid() -> None:
    probe = KnownOutputs()
    policy = make_policy(T3Policy, {"a": 0.9999, "b": 0.00004, "c": 0.00006}, probe, shortlist=3)
    decision = route(policy, probe)
    assert [names for _, names, _ in probe.asked] == [("a", "c")]
    assert read_coefficients(decision)["a"] == pytest.approx(0.5, abs=1e-3)
    # The topic is the selector's to judge: a is ahead of c by 0.38, of b by as much as is kept.
    assert policy.should_move(Decision(Mix(), {"c": 1.0}), decision)
    assert not policy.should_move(Decision(Mix(), {"b": 1.0}), decision)
    assert (decision.scores, decision.floor) == ({"a": 0.5, "b": 0.4, "c": 0.12}, 0.2)


# t3_batch

JS = {("x", "a"): 0.0, ("y", "a"): 0.5, ("z", "a"): 1.0}


def make_batch(**options: Any) -> tuple[T3BatchPolicy, KnownOutputs]:
    probe = KnownOutputs(js=JS)
    return make_policy(T3BatchPolicy, {"a": 1.0}, probe, gamma=4, **options), probe


def trust_alone(text: str) -> float:
    return 1 - 1 / (1 + math.exp(-4 * JS[text, "a"]))


def start(
    policy: Policy, probe: KnownOutputs, text: str, tenant: str | None = "t"
) -> asyncio.Task[Decision]:
    async def run() -> Decision:
        return await policy.route(Prompt(text, tenant=tenant), probe)

    return asyncio.ensure_future(run())


def route_together(
    policy: Policy, probe: KnownOutputs, *prompts: tuple[str, str | None]
) -> list[Decision]:
    async def run() -> list[Decision]:
        return list(
            await asyncio.wait_for(
                asyncio.gather(*(start(policy, probe, *prompt) for prompt in prompts)), 5
            )
        )

    return asyncio.run(run())


@pytest.mark.parametrize("tenant", ["t", None])
def test_a_batch_of_one_is_t3(tenant: str | None) -> None:
    policy, probe = make_batch()
    [decision] = route_together(policy, probe, ("y", tenant))
    alone = route(make_policy(T3Policy, {"a": 1.0}, probe, gamma=4), probe, Prompt("y"))
    assert decision == alone
    assert decision.batch == 1


@pytest.mark.parametrize("order", ["xyz", "zyx"])
def test_a_batch_has_the_mean_of_its_coefficients_in_any_order(order: str) -> None:
    decisions = route_together(*make_batch(sample=3), *((text, "t") for text in order))
    assert [read_coefficients(d) for d in decisions] == [
        near({"a": sum(map(trust_alone, "xyz")) / 3})
    ] * 3
    assert {d.batch for d in decisions} == {3}
    assert all("means over 3 prompts" in d.reason for d in decisions)


@pytest.mark.parametrize("order", ["xyz", "zyx", "yxz"])
def test_a_batch_makes_one_comparison_and_has_one_mix_in_any_order(order: str) -> None:
    policy, probe = make_batch()
    decisions = route_together(policy, probe, *((text, "t") for text in order))
    [(chosen, names, _)] = probe.asked
    assert names == ("a",)
    assert [read_coefficients(d) for d in decisions] == [near({"a": trust_alone(chosen)})] * 3
    first = min("xyz", key=lambda text: hashlib.sha256(f"True|{text}".encode()).hexdigest())
    assert (chosen, {d.batch for d in decisions}) == (first, {3})


def test_prompts_that_nobody_fits_count_with_nothing() -> None:
    policy, probe = make_batch(sample=3)

    class Picky(FixedSelector):
        async def select(self, prompt: Prompt, probe: Probe) -> Selection:
            found = await super().select(prompt, probe)
            return found if prompt.user_turn == "x" else replace(found, weights={})

    policy.selector = Picky({"a": 1.0})
    decisions = route_together(policy, probe, ("x", "t"), ("y", "t"))
    assert [read_coefficients(d) for d in decisions] == [near({"a": trust_alone("x") / 2})] * 2
    policy.selector = FixedSelector({})
    nobody = route_together(policy, probe, ("x", "t"), ("y", "t"))
    assert [(type(d), d.abstained, d.batch) for d in nobody] == [(Unselected, True, 2)] * 2


def test_a_comparison_that_fails_fails_for_all_of_its_batch() -> None:
    policy, _ = make_batch()

    class Failing(KnownOutputs):
        async def compare(self, *_: Any) -> Outputs:
            raise RouterError("no room")

    async def run() -> list[Any]:
        tasks = [start(policy, Failing(), text) for text in "xyz"]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [str(error) for error in asyncio.run(run())] == ["no room"] * 3


def test_tenants_never_mix_and_nobody_mixes_with_a_tenant_unknown() -> None:
    decisions = route_together(*make_batch(), ("x", "t"), ("y", "u"), ("z", None), ("y", None))
    assert [read_coefficients(d) for d in decisions] == [
        near({"a": trust_alone(text)}) for text in "xyzy"
    ]


def test_experts_of_any_form_are_compared_if_the_selector_can_choose_them() -> None:
    for kind in ("t3", "t3_batch"):
        assert "dense" in find_forms(kind, {})
        assert find_forms(kind, {"selector": "subspace"}) == {"low_rank"}


def test_a_full_batch_does_not_wait() -> None:
    decisions = route_together(
        *make_batch(window_ms=10_000, most=2, sample=2), ("x", "t"), ("z", "t")
    )
    assert [read_coefficients(d) for d in decisions] == [
        near({"a": (trust_alone("x") + trust_alone("z")) / 2})
    ] * 2


@pytest.mark.parametrize("gone", ["x", "y", "z"])
def test_whoever_is_cancelled_leaves_and_the_others_end(gone: str) -> None:
    policy, probe = make_batch(window_ms=100, sample=3)

    async def run() -> list[dict[str, float]]:
        tasks = {text: start(policy, probe, text) for text in "xyz"}
        await asyncio.sleep(0.01)
        tasks.pop(gone).cancel()
        return [
            read_coefficients(d) for d in await asyncio.wait_for(asyncio.gather(*tasks.values()), 5)
        ]

    assert (
        asyncio.run(run())
        == [near({"a": sum(trust_alone(text) for text in "xyz" if text != gone) / 2})] * 2
    )


def test_a_batch_whose_requests_are_all_gone_leaves_nothing_behind() -> None:
    policy, probe = make_batch(window_ms=30)

    async def run() -> int:
        task = start(policy, probe, "x")
        await asyncio.sleep(0.01)
        assert len(policy.waiting) == 1
        task.cancel()
        await asyncio.sleep(0.1)
        return len(policy.waiting) + len(probe.asked)

    assert asyncio.run(run()) == 0


def test_a_batch_waits_for_the_next_request_as_long_as_they_keep_coming() -> None:
    policy, probe = make_batch(window_ms=80)

    async def run() -> list[int]:
        tasks = []
        for text in "xyzx":
            tasks.append(start(policy, probe, text))
            await asyncio.sleep(0.04)
        return [decision.batch for decision in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [4] * 4
    assert len(probe.asked) == 1


def test_a_batch_stays_open_while_the_one_before_is_decided() -> None:
    policy, _ = make_batch(window_ms=0)
    asked: list[str] = []

    class Slow(KnownOutputs):
        async def compare(self, *asks: Any) -> Outputs:
            asked.append(asks[0].user_turn)
            await asyncio.sleep(0.2)
            return await super().compare(*asks)

    async def run() -> list[int]:
        probe = Slow(js=JS)
        tasks = [start(policy, probe, "x")]
        await asyncio.sleep(0.05)
        for text in "yzy":
            tasks.append(start(policy, probe, text))
            await asyncio.sleep(0.01)
        tasks.append(start(policy, probe, "z", "other"))
        return [decision.batch for decision in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [1, 3, 3, 3, 1]
    assert len(asked) == 3
    assert not policy.waiting


def test_a_comparison_that_nobody_waits_for_any_more_is_given_up() -> None:
    policy, _ = make_batch(window_ms=0)
    ended: list[str] = []

    class Slow(KnownOutputs):
        async def compare(self, *_: Any) -> Outputs:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("given up")
                raise
            raise AssertionError

    async def run() -> None:
        tasks = [start(policy, Slow(), text) for text in "xy"]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert not ended
        tasks[1].cancel()
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert ended == ["given up"]


# dawin


def route_dawin(
    weights: Mapping[str, float], entropy: Mapping[Any, float], **options: Any
) -> Decision:
    probe = KnownOutputs(entropy=entropy)
    return route(make_policy(DawinPolicy, weights, probe, calibrate_on=0, **options), probe)


def test_equal_entropies_give_a_half_and_others_the_plain_ratio() -> None:
    assert read_coefficients(route_dawin({"a": 1.0}, {"base": 1.3, "a": 1.3})) == {"a": 0.5}
    e0, e1 = math.exp(-2.0), math.exp(-1.0)
    decision = route_dawin({"a": 1.0}, {"base": 2.0, "a": 1.0})
    assert read_coefficients(decision) == near({"a": e1 / (e0 + e1)})
    assert decision.floor == pytest.approx(e0 / (e0 + e1))


def test_several_experts_share_kappa_with_the_base() -> None:
    entropy = {"base": 2.0, "a": 1.0, "b": 1.5}
    decision = route_dawin({"a": 0.5, "b": 0.5}, entropy, kappa=0.6)
    total = sum(math.exp(-h) for h in entropy.values())
    assert read_coefficients(decision) == near(
        {n: 0.6 * math.exp(-entropy[n]) / total for n in "ab"}
    )
    shifted = route_dawin({"a": 0.5, "b": 0.5}, {n: h + 2 for n, h in entropy.items()}, kappa=0.6)
    assert read_coefficients(shifted) == near(read_coefficients(decision))
    with pytest.raises(RouterError, match=r"may be 2\.0 at most"):
        make_policy(DawinPolicy, {"a": 1.0}, KnownOutputs(), kappa=2.5, calibrate_on=0)


def test_the_offset_for_one_expert_is_that_of_dawins_code() -> None:
    zs, ft = Habit(1.0, 2.0, 0.5), Habit(1.0, 1.2, 0.6)
    probe = KnownOutputs()
    policy = make_policy(DawinPolicy, {"a": 1.0}, probe, offset=True)
    e_zs, e_ft = math.exp(-2.3), math.exp(-0.9)
    b, w = (0.5 / 2.0 + 0.6 / 1.2) / 2, (2.0 + 1.2) / 2.0
    expected = (e_ft + b / w) / (e_zs + e_ft + b)
    assert policy.share([zs, ft], torch.tensor([2.3, 0.9])).tolist() == pytest.approx(
        [1 - expected, expected]
    )
    flat = [Habit(1.0, 1.0, 0.0)] * 2  # b = 0 and w = 2: the plain ratio
    assert policy.share(flat, torch.tensor([2.3, 0.9]))[1].item() == pytest.approx(
        e_ft / (e_zs + e_ft)
    )


def test_temperatures_make_entropies_what_the_losses_are_at_home() -> None:
    entropy: dict[Any, float] = {
        **{(f"a{i}", "a"): 1.0 + i / 10 for i in range(8)},
        "base": 3.0,
        "a": 1.0,
        "b": 2.0,
        "c": 2.0,
        "d": 2.0,
    }
    nll: dict[Any, float] = {
        **{(f"a{i}", "a"): 2.0 + i / 5 for i in range(8)},
        "base": 3.0,
        "b": 2.0,
        "c": 2.0,
        "d": 2.0,
    }
    probe = KnownOutputs(entropy=entropy, nll=nll)
    policy = make_policy(DawinPolicy, {"a": 1.0}, probe)
    assert policy.habits["a"].temperature == pytest.approx(0.5)  # twice as sure as right
    assert policy.habits["a"].mean == pytest.approx(2.7)
    assert policy.habits["a"].deviation == pytest.approx(
        2 * torch.arange(8.0).std().item() / 10, rel=1e-4
    )
    e0, e1 = math.exp(-3.0), math.exp(-1.0 / 0.5)
    assert read_coefficients(route(policy, probe)) == near({"a": e1 / (e0 + e1)})
