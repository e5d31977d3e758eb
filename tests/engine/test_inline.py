"""Mixes decided inside the pass, in real vLLM against plain transformers."""

import asyncio
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.mix import Mix
from router.errors import RouterError
from tests.factories.engines import workers_of
from tests.factories.inline_world import Asked, World, ask
from tests.factories.offline_client import Front, Numbers
from tests.factories.tiny_engines import (
    BASES,
    compiling_with_lora,
    prompts,
    write_base,
    write_library,
)
from tta_serve.engine import wire

CHUNK = 32
CHUNKED = {"max_num_batched_tokens": CHUNK, "enable_chunked_prefill": True}
LENGTHS = (3, 9, 24, 40, 17, 31, 12, 28)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("inline")
    base = write_base(root / "base", BASES["llama"])
    return World.of(base, write_library(root / "library", base))


def undecided(policy: str, lengths: tuple[int, ...] = LENGTHS) -> list[Asked]:
    """Turns that neither begin nor end their prompts, where there is room."""
    found = []
    for prompt in prompts(lengths):
        turn = (len(prompt) // 3, max(len(prompt) - 2, len(prompt) // 3 + 1))
        found.append(Asked(prompt, wire.make_undecided_request(policy), turn))
    return found


def test_the_heads_of_this_file_choose_differently(world: World) -> None:
    mixes = {world.decision(one.prompt, one.turn)[2] for one in undecided("x") if one.turn}
    assert len(mixes) >= 4
    assert Mix() in mixes


def test_decisions_are_those_of_plain_transformers_and_used_above_the_layer_that_makes_them(
    world: World,
) -> None:
    with world.engine() as ours:
        asked = undecided(world.install(ours))
        for one, got in zip(asked, ask(ours, asked), strict=True):
            world.assert_decided(one, got)
            assert got.decided.since == 0


def test_a_decision_is_the_same_mix_pinned_to_the_last_bit(world: World) -> None:
    with world.engine(enable_prefix_caching=False) as ours:
        asked = undecided(world.install(ours))
        decided = ask(ours, asked)
        mixes = [world.upper(world.mix(got.decided)) for got in decided if got.report]
        fixed = [
            Asked(one.prompt, wire.make_mix_request(m, world.library.digests))
            for one, m in zip(asked, mixes, strict=True)
        ]
        assert [got.answer for got in ask(ours, fixed)] == [got.answer for got in decided]


def test_a_batch_of_all_kinds_gives_each_what_it_gets_alone(world: World) -> None:
    with world.engine() as ours:
        policy = world.install(ours)
        asked = undecided(policy)
        asked[1] = Asked(asked[1].prompt)
        asked[4] = Asked(
            asked[4].prompt,
            wire.make_mix_request(Mix.of({"small": 0.5, "few": -0.25}), world.library.digests),
        )
        asked[6] = Asked(asked[6].prompt, wire.make_probe_request("activations"))
        together = ask(ours, asked)
        alone = [ask(ours, [one._replace(adapter=_again(one, policy))])[0] for one in asked]
        for one, got, wanted in zip(asked, together, alone, strict=True):
            assert got.answer.tokens == wanted.answer.tokens
            assert got.answer.logprobs == pytest.approx(wanted.answer.logprobs, abs=1e-4)
            if one.turn:
                world.assert_decided(one, got)


def _again(one: Asked, policy: str) -> Any:
    return wire.make_undecided_request(policy) if one.turn else one.adapter


def test_more_turns_than_slots(world: World) -> None:
    with world.engine(slots=3) as ours:
        asked = undecided(world.install(ours))
        for one, got in zip(asked, ask(ours, asked), strict=True):
            world.assert_decided(one, got)


def test_long_turns_are_decided_by_the_chunk_that_ends_them(world: World) -> None:
    with world.engine(**CHUNKED) as ours:
        asked = [
            one._replace(turn=(5, len(one.prompt) - 3))
            for one in undecided(world.install(ours), (150, 70, 33, 20, 90, 120))
        ]
        since = []
        for one, got in zip(asked, ask(ours, asked), strict=True):
            world.assert_decided(one, got)
            since.append(got.decided.since)
        assert max(since) >= 2 * CHUNK
        assert min(since) == 0


def test_parallel_samples_share_a_decision(world: World) -> None:
    with world.engine() as ours:
        policy = world.install(ours)
        [prompt] = prompts((70,))
        parameters = {"n": 3, "temperature": 1.0, "seed": 7}
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=6, ignore_eos=True, logprobs=0, detokenize=False, **parameters
        )
        adapter = wire.with_turn(wire.make_undecided_request(policy), (20, 68))
        [output] = ours.llm.generate(
            [{"prompt_token_ids": prompt}], params, lora_request=[adapter], use_tqdm=False
        )
        report = wire.take_decision(output)
        assert report is not None
        mix = world.decision(prompt, (20, 68))[2]
        assert world.mix(report) == mix
        for sample in output.outputs:
            tokens = list(sample.token_ids)
            with world.reference.merged(world.library.experts, world.upper(mix).as_dict()):
                wanted = world.reference.logprobs(prompt, tokens).gather(
                    1, torch.tensor(tokens)[:, None]
                )[:, 0]
            found = [lp[t].logprob for lp, t in zip(sample.logprobs, tokens, strict=True)]
            torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("caching", [False, True])
def test_one_that_is_preempted_and_computed_again_keeps_its_decision(
    world: World, caching: bool
) -> None:
    """Seven requests of up to four blocks in a cache of nine."""
    with world.engine(**CHUNKED, num_gpu_blocks_override=9, enable_prefix_caching=caching) as ours:
        asked = undecided(world.install(ours), (60, 50, 40, 44, 52, 38, 41))
        found = ask(ours, asked, tokens=40)
        preempted = sum(1 for got in found if got.report is not None)
        assert preempted == len(asked)
        for one, got in zip(asked, found, strict=True):
            world.assert_decided(one, got)


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_a_compiled_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with compiling_with_lora(), world.engine(enforce_eager=False) as ours:
        asked = undecided(world.install(ours))
        for one, got in zip(asked, ask(ours, asked), strict=True):
            world.assert_decided(one, got)


def test_features_are_the_mean_over_the_turn(world: World) -> None:
    with world.engine(**CHUNKED) as ours:
        client = Front(ours.llm, Numbers()).client()
        for prompt in prompts((40, 9, 70)):
            found = asyncio.run(client.features(" ".join(map(str, prompt))))
            torch.testing.assert_close(
                found, world.features(prompt, (0, len(prompt))), rtol=1e-3, atol=1e-3
            )


def test_a_policy_that_is_not_there_leaves_the_base(world: World) -> None:
    with world.engine() as ours:
        [one, *_] = undecided("unknown", (24,))
        [got] = ask(ours, [one])
        assert got.report is None
        world.assert_answer(got.answer, Mix(), 0)


def test_a_policy_that_does_not_fit_is_refused(world: World) -> None:
    wide = replace(
        world,
        head=replace(world.head, mean=torch.zeros(3), std=torch.ones(3), weight=torch.zeros(4, 3)),
    )
    with (
        world.engine() as ours,
        pytest.raises(RouterError, match="reads 3 features, the base has 128"),
    ):
        wide.install(ours)


def test_more_policies_than_there_is_room_for_replace_the_oldest(world: World) -> None:
    from tta_serve.engine.options import MOST_POLICIES_WITHIN

    with world.engine() as ours:
        for shift in range(MOST_POLICIES_WITHIN + 1):
            other = replace(
                world,
                head=replace(
                    world.head, bias=world.head.bias + 10 * (shift > 0) * torch.eye(4)[shift % 3]
                ),
            )
            other = replace(other, head=replace(other.head, temperature=1 + shift / 10))
            policy = other.install(ours)
            if shift == 0:
                oldest = policy
        asked = [*undecided(policy, (24, 17)), *undecided(oldest, (9,))]
        *decided, left = ask(ours, asked)
        for one, got in zip(asked, decided, strict=False):
            assert one.turn is not None
            scores, _, _ = other.decision(one.prompt, one.turn)
            wanted = [
                s + b for s, b in zip(scores.values(), other.head.bias.tolist(), strict=False)
            ]
            assert got.decided.scores == pytest.approx(wanted, abs=1e-2)
        assert left.report is None


def test_an_expert_that_is_gone_is_not_chosen_any_more(world: World) -> None:
    with world.engine() as ours:
        policy, workers = world.install(ours), workers_of(ours.llm)
        asked = undecided(policy)
        before = [world.mix(got.decided) for got in ask(ours, asked) if got.report]
        gone = next(name for mix in before for name, _ in mix.coefficients)
        ask(ours, [Asked([5])])  # workers hear of a request's end with the next step
        assert asyncio.run(workers.unload(world.library.digests[gone]))
        anew = [one._replace(adapter=wire.make_undecided_request(policy)) for one in asked]
        after = [world.mix(got.decided) for got in ask(ours, anew) if got.report]
        assert all(gone not in mix.as_dict() for mix in after)
        assert any(not mix.is_base for mix in after)
        asyncio.run(workers.load(gone, world.library.digests[gone]))
        anew = [one._replace(adapter=wire.make_undecided_request(policy)) for one in asked]
        assert [world.mix(got.decided) for got in ask(ours, anew) if got.report] == before
