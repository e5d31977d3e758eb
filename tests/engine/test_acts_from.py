"""Mixes that act from a token on: what stands before is the base's, and shared by all of them."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.mix import Mix
from tests.factories.engines import Answer, Engine, assert_same
from tests.factories.inline_world import BLOCK, Asked, World, ask
from tests.factories.tiny_engines import (
    BASES,
    compiling_with_lora,
    prompts,
    write_base,
    write_library,
)
from tta_serve.engine import wire
from tta_serve.engine.wire import EarlierMix

CHUNKED = {"max_num_batched_tokens": 32, "enable_chunked_prefill": True}
MIXES = (Mix.of({"small": 1.0}), Mix.of({"few": -0.5, "rslora": 0.5}), Mix.of({"rslora": 1.0}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("acts-from")
    base = write_base(root / "base", BASES["llama"])
    return World.of(base, write_library(root / "library", base))


class Acting(NamedTuple):
    """A prompt, and the mixes that its tokens run as."""

    prompt: list[int]
    parts: Sequence[tuple[int, Mix]]
    """The first token of each, and the mix; the base before the first one."""

    def asked(self, world: World) -> Asked:
        *earlier, (acts_from, mix) = self.parts
        adapter = _request(world, mix)
        before = [_earlier(world, start, one) for start, one in earlier]
        return Asked(self.prompt, wire.acting_from(adapter, acts_from, before))


def _request(world: World, mix: Mix) -> LoRARequest:
    return wire.make_mix_request(mix, world.library.digests) or wire.make_base_request()


def _earlier(world: World, start: int, mix: Mix) -> EarlierMix:
    adapter = _request(world, mix)
    return EarlierMix(start, adapter.lora_name, wire.read_order(adapter).mix or {})


def assert_right(world: World, acting: Acting, answer: Answer) -> None:
    """The answer is that of tokens each of which runs as the mix of its part."""
    with world.reference.in_parts(world.library.experts, acting.parts):
        assert_same(answer, world.reference.logprobs(answer.prompt, answer.tokens))


def acting(lengths: Sequence[int] = (100, 100, 77, 70, 40)) -> list[Acting]:
    """Prompts of one beginning, whose mixes start within blocks, between them, and at both ends."""
    [shared, *ends] = prompts((64, *(n - 40 for n in lengths)))
    starts = (64, 50, 41, 0, 39)
    return [
        Acting([*shared[:40], *end], [(min(start, len(end) + 39), MIXES[i % len(MIXES)])])
        for i, (end, start) in enumerate(zip(ends, starts, strict=True))
    ]


def changing() -> list[Acting]:
    """Prompts whose tokens run as one mix after the other."""
    [one, two, three] = prompts((150, 120, 90))
    first, second, third = MIXES
    return [
        Acting(one, [(20, first), (64, second), (100, first), (130, third)]),
        Acting(two, [(0, third), (33, first)]),
        Acting(three, [(10, second), (12, third), (15, first), (80, second)]),
        Acting(three[:80], [(10, second), (40, Mix()), (66, first)]),
        Acting(two, [(0, third), (33, Mix())]),
    ]


def assert_all_right(world: World, engine: Engine, wanted: Sequence[Acting]) -> None:
    got = ask(engine, [one.asked(world) for one in wanted])
    for one, found in zip(wanted, got, strict=True):
        assert_right(world, one, found.answer)


@pytest.mark.parametrize("settings", [{}, CHUNKED], ids=["whole", "in chunks"])
def test_tokens_before_are_the_bases_cached_or_not(world: World, settings: dict[str, Any]) -> None:
    with world.engine(**settings) as engine:
        everything = [*acting(), *changing()]
        for _ in range(2):  # the second round is answered from the cache
            assert_all_right(world, engine, everything)
        for one in everything:  # each alone, from the cache of all others
            assert_all_right(world, engine, [one])
        engine.llm.reset_prefix_cache()
        assert_all_right(world, engine, everything[::-1])


def test_a_batch_of_all_kinds(world: World) -> None:
    with world.engine(slots=8) as engine:
        policy = world.install(engine)
        [prompt] = prompts((90,))
        undecided = Asked(
            prompt, wire.acting_from(wire.make_undecided_request(policy), 40), (40, 80)
        )
        plain, whole = acting()[:2]
        others = [
            Asked(plain.prompt),
            Asked(whole.prompt, _request(world, MIXES[2])),
            Asked(prompt, wire.make_probe_request("activations")),
        ]
        mixed = [*acting()[2:], changing()[0]]
        asked = [undecided, *others, *(one.asked(world) for one in mixed)]
        for _ in range(2):
            got = ask(engine, asked)
            world.assert_decided(undecided, got[0])
            assert got[0].decided.since == 40
            assert_right(world, Acting(plain.prompt, []), got[1].answer)
            assert_right(world, Acting(whole.prompt, [(0, MIXES[2])]), got[2].answer)
            for one, found in zip(mixed, got[4:], strict=True):
                assert_right(world, one, found.answer)
            adapter = wire.acting_from(wire.make_undecided_request(policy), 40)
            asked[0] = undecided = undecided._replace(adapter=adapter)


def test_all_mixes_and_the_base_share_what_stands_before(world: World) -> None:
    [shared, *ends] = prompts((3 * BLOCK, 20, 20, 20, 20))
    with world.engine() as engine:
        policy = world.install(engine)
        starts = [shared + end for end in ends]
        begun = wire.acting_from(wire.make_undecided_request(policy), len(shared))
        asked = [
            Asked(starts[0]),
            Asked(starts[1], begun, (len(shared), len(shared) + 20)),
            Acting(starts[2], [(len(shared), MIXES[0])]).asked(world),
            Acting(starts[3], [(len(shared), MIXES[1])]).asked(world),
        ]
        found = [count_cached(engine, one) for one in asked]
        assert found == [0, *[len(shared)] * 3]

        # A mix that acts within a block shares those before it, with equals alone the block.
        inside = [Acting(starts[0], [(start, MIXES[0])]).asked(world) for start in (70, 71, 70)]
        assert [count_cached(engine, one) for one in inside] == [2 * BLOCK, 2 * BLOCK, 3 * BLOCK]

        # One that acts from the start shares nothing but with itself.
        assert count_cached(engine, Acting(starts[0], [(0, MIXES[0])]).asked(world)) == 0


@pytest.mark.parametrize("settings", [{}, CHUNKED], ids=["whole", "in chunks"])
def test_a_later_turn_keeps_the_mix_or_moves_on(world: World, settings: dict[str, Any]) -> None:
    """Whatever it does, what stands before stays as it is, computed anew or from the cache."""
    digests = world.library.digests
    first = Mix.of({"few": 0.5})
    content = {digests["few"]: 0.5}
    ran = EarlierMix(20, "turn-1", content, 32, upper=True)
    kept = []
    with world.engine(**settings) as engine:
        policy = world.install(engine)
        for prompt in prompts((120, 100, 110)):
            turn = len(prompt) - 30, len(prompt) - 4
            scores, _, mix = world.decision(prompt, turn)
            best = None if mix.is_base else max(scores, key=lambda name: scores[name])
            for choice in (None, *scores):
                before = wire.TurnBefore(content, choice and digests[choice])
                adapter = wire.make_undecided_request(policy, before=before)
                asked = Asked(prompt, wire.acting_from(adapter, turn[0], [ran]), turn)
                [got] = ask(engine, [asked])
                assert got.decided.kept == (choice == best)
                assert got.decided.since >= turn[0]
                own = world.upper(first if got.decided.kept else mix)
                parts = [(32, world.upper(first)), (turn[0], Mix()), (got.decided.since, own)]
                assert_right(world, Acting(prompt, parts), got.answer)
                kept.append(got.decided.kept)
    assert kept.count(True) == 3


def test_what_cannot_be_read_keeps_the_mix(world: World) -> None:
    [prompt] = prompts((40,))
    content = {world.library.digests["small"]: 1.0}
    with world.engine() as engine:
        before = wire.TurnBefore(content, world.library.digests["small"])
        adapter = wire.make_undecided_request("no such policy", before=before)
        [got] = ask(engine, [Asked(prompt, wire.acting_from(adapter, 10), (10, 30))])
        assert got.report is None
        assert_right(world, Acting(prompt, [(10, world.upper(MIXES[0]))]), got.answer)


def count_cached(engine: Engine, one: Asked) -> int:
    """Return how many tokens of a prompt were found in the prefix cache."""
    from vllm import SamplingParams

    adapter = one.adapter and (wire.with_turn(one.adapter, one.turn) if one.turn else one.adapter)
    [output] = engine.llm.generate(
        [{"prompt_token_ids": one.prompt}],
        SamplingParams(max_tokens=1, temperature=0, detokenize=False),
        lora_request=[adapter],
        use_tqdm=False,
    )
    cached: int = output.num_cached_tokens
    return cached


@pytest.mark.parametrize("caching", [False, True], ids=["recomputed", "from the cache"])
def test_preempted_requests_get_each_token_as_before(world: World, caching: bool) -> None:
    settings = {**CHUNKED, "num_gpu_blocks_override": 12, "enable_prefix_caching": caching}
    with world.engine(slots=6, **settings) as engine:
        wanted = [*acting((60, 60, 57, 52, 50)), changing()[2]]
        got = ask(engine, [one.asked(world) for one in wanted], tokens=40)
        for one, found in zip(wanted, got, strict=True):
            assert_right(world, one, found.answer)


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_a_compiled_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with compiling_with_lora(), world.engine(enforce_eager=False) as engine:
        for _ in range(2):
            assert_all_right(world, engine, [*acting(), *changing()])


def test_more_earlier_mixes_in_a_row_than_there_are_slots_for(world: World) -> None:
    with world.engine(slots=1) as engine:
        for units in range(1, 20):
            [prompt] = prompts((50,))
            parts = [(i * 6, Mix.of({"small": units / 20 + i / 20})) for i in range(8)]
            assert_all_right(world, engine, [Acting(prompt, parts)])


Parts = list[tuple[int, str]]


def named(parts: Parts) -> LoRARequest:
    *earlier, (start, name) = parts
    adapter = LoRARequest(name, 1, "tta:{}")
    return wire.acting_from(adapter, start, [EarlierMix(at, one, {}) for at, one in earlier])


@st.composite
def draw_parts(draw: st.DrawFn) -> Parts:
    gaps = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    return list(zip(accumulate(gaps), draw(st.permutations("ABCD")), strict=False))


def split_names(parts: Parts, tokens: int) -> Iterator[tuple[str, int] | None]:
    """Yield what each token runs as: the name, and the token from which its part does."""
    for token in range(tokens):
        begun = [(name, start) for start, name in parts if start <= token]
        yield begun[-1] if begun else None


@given(draw_parts(), draw_parts(), st.integers(1, 6))
def test_blocks_have_equal_keys_if_their_tokens_ran_alike(
    one: Parts, other: Parts, size: int
) -> None:
    for end in range(size, 40, size):
        blocks = [
            [wire.find_names(named(parts), at, at + size) for at in range(0, end, size)]
            for parts in (one, other)
        ]
        runs = [list(split_names(parts, end)) for parts in (one, other)]
        assert (blocks[0] == blocks[1]) == (runs[0] == runs[1])


def test_an_order_says_what_earlier_tokens_ran_as() -> None:
    adapter = wire.make_undecided_request("policy", Gating("arrow", 2))
    part = EarlierMix(3, "turns-1", {"d1": 0.5, "d2": (1.0, 0.0)}, 5, True, Gating("arrow", 2))
    order = wire.read_order(wire.acting_from(adapter, 9, [part]))
    assert order.earlier == (part,)
    assert order.acts_from == order.used_from == 9
    for wrong in (2, -1):
        with pytest.raises(AssertionError):
            wire.acting_from(adapter, wrong, [part])
    with pytest.raises(AssertionError):
        wire.acting_from(wire.make_probe_request("features"), 3)
