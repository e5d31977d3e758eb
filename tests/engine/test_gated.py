"""Experts that share each token in each layer by what they read of it.

In real vLLM, against plain transformers.
"""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig
from vllm.lora.request import LoRARequest

from adapters.bank.bank import build_bank
from adapters.bank.layer_gates import LAYER_GATES, LayerGate, read_gates, write_gates
from adapters.bank.token_gating import Gating, Sharing
from adapters.coefficient import Pair, Place
from adapters.errors import ExpertError
from adapters.low_rank import make_canonical
from adapters.mix import Mix
from tests.engine.test_architectures import MILD
from tests.engine.test_inline import CHUNKED, undecided
from tests.engine.test_places import bank_bytes
from tests.factories.deltas import make_factor
from tests.factories.engines import TOLERANCE, Answer, Engine, assert_same, distance, workers_of
from tests.factories.experts import make_expert, make_gates
from tests.factories.inline_world import Asked, World, ask
from tests.factories.tiny_engines import (
    BASES,
    compiling_with_lora,
    prompts,
    write_base,
    write_library,
)
from tta_serve.engine import wire
from tta_serve.engine.wire import EarlierMix
from tta_serve.engine.worker.coefficient_table import CoefficientTable
from tta_serve.engine.worker.placed_expert import place_gated_expert
from tta_serve.engine.worker.step_state import StepState

ALL = Mix.of({"few": 1.0, "rslora": 1.0, "small": 1.0})
ARROW, SPECTR, SMILE = Gating("arrow", 2, 1.0), Gating("spectr", 2), Gating("spectr", 3, 0.5)
TOP = Gating("arrow", 1)
TRAINED = Gating("trained", 2, 1.0)


class Wish(NamedTuple):
    """What a request is run as: a mix, gated or not."""

    mix: Mix
    gating: Gating | None = None

    def adapter(self, world: World) -> LoRARequest | None:
        return wire.make_mix_request(self.mix, world.library.digests, self.gating)


WISHES = [
    Wish(ALL, ARROW),
    Wish(ALL, SPECTR),
    Wish(Mix()),
    Wish(ALL, SMILE),
    Wish(Mix.of({"small": 0.5, "few": -0.25})),
    Wish(Mix.of({"rslora": 1.0, "small": 1.0}), TOP),
    Wish(Mix.of({"rslora": Pair(1.0, 0.0), "small": (0.0, 1.0), "few": 1.0}), SMILE),
    Wish(Mix.of({"few": 1.0}), SPECTR),
    Wish(ALL, TRAINED),
]
LENGTHS = (3, 9, 24, 40, 17, 31, 12, 28, 22)


def world_of(root: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> World:
    folder = write_base(root / "base", config, dtype)
    library = write_library(root / "library", folder)
    write_gates(
        library.root / LAYER_GATES, make_gates(library.experts, without="rslora"), replace=False
    )
    return World.of(folder, library)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world_of(tmp_path_factory.mktemp("gated"), BASES["llama"])


def engine(world: World, slots: int = 9, **settings: Any) -> AbstractContextManager[Engine]:
    return world.engine(slots, **{"gated": True, "trained": True} | settings)


def logprobs(world: World, answer: Answer, wish: Wish, since: int = 0) -> torch.Tensor:
    experts, mix = world.library.experts, wish.mix.as_dict()
    with world.reference.used(
        experts, mix, wish.gating, since, read_gates(world.library.root / LAYER_GATES)
    ):
        return world.reference.logprobs(answer.prompt, answer.tokens)


def asked_for(
    world: World, wishes: Sequence[Wish], lengths: tuple[int, ...] = LENGTHS
) -> list[Asked]:
    return [
        Asked(prompt, wish.adapter(world))
        for prompt, wish in zip(prompts(lengths), wishes, strict=True)
    ]


def assert_right(world: World, answers: Sequence[Answer], wishes: Sequence[Wish]) -> None:
    for answer, wish in zip(answers, wishes, strict=True):
        assert_same(answer, logprobs(world, answer, wish))


@pytest.mark.parametrize(
    "base", ["llama", "phi3, fused in the checkpoint", "qwen3-moe, first layer dense"]
)
def test_shares_are_those_of_plain_transformers(base: str, tmp_path: Path) -> None:
    world = world_of(tmp_path, BASES[base])
    with engine(world) as ours:
        answers = [got.answer for got in ask(ours, asked_for(world, WISHES))]
        assert_right(world, answers, WISHES)
        turned = WISHES[3:] + WISHES[:3]
        assert_right(world, [got.answer for got in ask(ours, asked_for(world, turned))], turned)
    assert distance(answers[0], logprobs(world, answers[0], Wish(ALL, SPECTR))) > 10 * TOLERANCE, (
        "or nothing is seen here"
    )


def test_a_batch_of_all_kinds_gives_each_what_it_gets_alone(world: World) -> None:
    with engine(world) as ours:
        policy = world.install(ours)

        def all_kinds() -> list[Asked]:
            turns = undecided(policy)
            gated = [
                one._replace(adapter=wire.make_undecided_request(policy, g))
                for one, g in zip(turns, [SMILE] * 8, strict=True)
            ]
            fixed = asked_for(world, WISHES)
            return [fixed[0], turns[1], gated[2], fixed[3], fixed[4], gated[5], turns[6], gated[7]]

        together, alone = ask(ours, all_kinds()), [ask(ours, [one])[0] for one in all_kinds()]
        gated_and_decided = set()
        for number, (one, got, wanted) in enumerate(zip(all_kinds(), together, alone, strict=True)):
            assert got.answer.tokens == wanted.answer.tokens
            assert got.answer.logprobs == pytest.approx(wanted.answer.logprobs, abs=1e-4)
            if one.turn is None:
                assert_right(world, [got.answer], [WISHES[number]])
            elif number in (1, 6):
                world.assert_decided(one, got)
            else:
                mix = world.decision(one.prompt, one.turn)[2]
                assert world.mix(got.decided) == mix
                assert_same(got.answer, logprobs(world, got.answer, Wish(world.upper(mix), SMILE)))
                gated_and_decided.add(mix)
        assert len(gated_and_decided) > 1


def test_long_prompts_in_chunks_and_a_conversation_that_goes_on_gated(world: World) -> None:
    wishes = [*WISHES[:4], WISHES[6]]
    with engine(world, **CHUNKED) as ours:
        assert_right(
            world,
            [got.answer for got in ask(ours, asked_for(world, wishes, (150, 70, 33, 90, 120)))],
            wishes,
        )
        policy = world.install(ours)
        [first, second] = prompts((90, 60))
        turn = next(
            (a, a + 3)
            for a in range(40, 80)
            if len(world.decision(first, (a, a + 3))[2].coefficients) > 1
        )
        begun = Asked(first, wire.make_undecided_request(policy, SMILE), turn)
        [got] = ask(ours, [begun])
        mix, since = world.mix(got.decided), got.decided.since
        assert since > 0
        wish = Wish(world.upper(mix), SMILE)
        assert_same(got.answer, logprobs(world, got.answer, wish, since))
        assert begun.adapter is not None
        digests = world.library.digests
        content = {digests[name]: c for name, c in mix.coefficients}
        ran = EarlierMix(0, begun.adapter.lora_name, content, since, upper=True, gating=SMILE)
        prompt = [*first, *got.answer.tokens, *second]
        again = wire.acting_from(wish.adapter(world), len(prompt) - 50, [ran])
        for _ in ("with the first turn's keys and values", "without"):
            [got] = ask(ours, [Asked(prompt, again)])
            assert_same(got.answer, logprobs(world, got.answer, wish, since))
            ours.llm.reset_prefix_cache()


def test_the_prefix_cache_changes_nothing_and_never_crosses_gatings(world: World) -> None:
    [prompt] = prompts((100,))
    wishes = [Wish(ALL, ARROW), Wish(ALL), Wish(ALL, SMILE), Wish(ALL, SPECTR), Wish(Mix())]
    asked = [Asked(prompt, wish.adapter(world)) for wish in wishes]
    assert len({one.adapter and one.adapter.lora_int_id for one in asked}) == len(wishes)
    with engine(world, slots=2, enable_prefix_caching=False) as ours:
        uncached = [ask(ours, [one])[0].answer for one in asked]
    with engine(world, slots=2) as ours:
        for _ in ("filling it", "reading it"):
            for one, wanted, wish in zip(asked, uncached, wishes, strict=True):
                [got] = ask(ours, [one])
                assert got.answer.tokens == wanted.tokens
                assert got.answer.logprobs == pytest.approx(wanted.logprobs, abs=TOLERANCE)
                assert_right(world, [got.answer], [wish])


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles to C++ on CPU")
def test_a_compiled_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with compiling_with_lora(), engine(world, enforce_eager=False) as ours:
        assert_right(world, [got.answer for got in ask(ours, asked_for(world, WISHES))], WISHES)


def test_in_bfloat16_where_one_bank_serves_all_shares_are_those_but_for_rounding(
    tmp_path: Path,
) -> None:
    """Of all candidates with a temperature: shares that do not jump where scores are nearly equal.

    A rounded score moves shares, and so the answer by a part of what experts change. How much is
    rounded differs by CPU: one without AVX-512 has other bfloat16 products.
    """
    world = world_of(tmp_path, MILD, torch.bfloat16)
    gated = [
        Wish(ALL, SMILE),
        Wish(ALL, Gating("arrow", 3, 1.0)),
        Wish(ALL, Gating("trained", 3, 2.0)),
    ]
    wishes = [*gated, Wish(Mix()), Wish(Mix.of({"small": 0.5, "few": -0.25}))]
    with engine(world, dtype="bfloat16") as ours:
        for got, wish in zip(ask(ours, asked_for(world, wishes, LENGTHS[:5])), wishes, strict=True):
            found, base, equal = (
                distance(got.answer, logprobs(world, got.answer, w))
                for w in (wish, Wish(Mix()), Wish(ALL, Gating("spectr", 3)))
            )
            assert found < 0.04 * max(1, base if wish.gating else 1)
            if wish.gating:
                assert min(base, equal) > 0.4


def test_where_graphs_are_captured_no_step_takes_a_short_cut() -> None:
    """A step without gated tokens then computes shares too, and uses none."""
    place = Place(0, "mlp")
    table = CoefficientTable(2, [place], 2, torch.device("cpu"))
    state = StepState(table, 8, captured=True, gated=True)
    bank = build_bank([[make_canonical(make_factor(2, 5, 6, seed)) for seed in (0, 1)]], [5])
    assert bank is not None
    x, found = torch.randn(3, 6), []
    for gating in (None, ARROW, None):
        table.write(1, {0: 0.5, 1: -0.25}, gating=gating)
        state.begin(np.array([1, 0, 1]), active=True)
        use = state.dense(place, bank, 3)
        assert isinstance(use, Sharing)
        found.append(bank.add_(torch.zeros(3, 5), x, use))
    plain = bank.add_(torch.zeros(3, 5), x, state.rows(place, bank.expert, 3))
    assert torch.equal(found[0], plain)
    assert torch.equal(found[2], plain)
    assert (found[1] != plain).any(1).tolist() == [True, False, True]


def test_dense_banks_come_with_gated_requests_and_hold_their_candidates(world: World) -> None:
    pair = Mix.of({"few": 1.0, "small": 1.0})
    with engine(world) as ours:
        before = bank_bytes(ours)
        ask(ours, asked_for(world, [Wish(pair, SPECTR)], (9,)))
        two = bank_bytes(ours) - before
        ask(ours, asked_for(world, [Wish(ALL, SPECTR)], (9,)))
        assert bank_bytes(ours) - before > 1.5 * two > 0
        assert_right(
            world,
            [ask(ours, asked_for(world, [Wish(pair, ARROW)], (24,)))[0].answer],
            [Wish(pair, ARROW)],
        )
        ask(ours, asked_for(world, [Wish(Mix.of({"few": 1.0}), SPECTR)], (9,)), tokens=100)
        assert bank_bytes(ours) - before < two


def test_candidates_come_and_go_and_one_that_changes_nothing_is_none(
    world: World, tmp_path: Path
) -> None:
    """A LoRA that was never trained has no directions in which it reads."""
    root = tmp_path / "library"
    shutil.copytree(world.library.root, root)
    make_expert(root / "untrained", world.base, seed=9, layers=range(2), strength=0)
    world = World.of(world.base, type(world.library).open(root))
    every = Wish(Mix.of(dict.fromkeys(world.library.names, 1.0)), SPECTR)
    with engine(world) as ours:
        asked = Asked(prompts((24,))[0], every.adapter(world))
        [got] = ask(ours, [asked])
        assert_right(world, [got.answer], [Wish(ALL, SPECTR)])
        ask(ours, [Asked([5])])  # workers hear of a request's end with the next step
        workers, digest = workers_of(ours.llm), world.library.digests["rslora"]
        assert asyncio.run(workers.unload(digest))
        rest = Wish(Mix.of({"few": 1.0, "small": 1.0}), SPECTR)
        assert_right(world, [ask(ours, asked_for(world, [rest], (24,)))[0].answer], [rest])
        ask(ours, [Asked([5])])
        asyncio.run(workers.load("rslora", digest))
        assert ask(ours, [asked])[0].answer == got.answer


def test_gates_of_other_ranks_are_refused_by_name(world: World) -> None:
    expert = world.library.expert("few")
    module = next(iter(expert.factors))
    for gates in (
        {module: LayerGate(torch.ones(99), 0.0)},
        {"elsewhere": LayerGate(torch.ones(1), 0.0)},
    ):
        with pytest.raises(ExpertError, match="'few': its trained gates do not fit"):
            place_gated_expert(
                expert,
                torch.nn.Module(),
                {},
                lambda _, factor: factor.float(),
                apart=True,
                gates={expert.digest: gates},
            )
