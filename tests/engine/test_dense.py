"""Dense experts, merged into the weights: as transformers with the same weights, and no trace."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.coefficient import Pair
from adapters.library.library import Library
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Window
from tests.factories.dense import add_dense
from tests.factories.engines import Answer, Engine, assert_same, read_answer
from tests.factories.offline_client import Front, Numbers, assert_compared
from tests.factories.tiny_engines import (
    BASES,
    SHAPE,
    prompts,
    tiny_engine,
    write_base,
    write_library,
)
from tests.reference import Reference
from tta_serve.engine.options import DenseOptions
from tta_serve.engine.wire import read_order
from tta_serve.engine.worker.dense.mix_writer import MixedWeight

STEP_S = 0.02
"""What a step takes by the clock of a stream."""

MIXES = [
    Mix.of({"whole": 1.0}),
    Mix(),
    Mix.of({"whole": 0.5, "ends": -0.7}),
    Mix.of({"small": 0.8}),
    Mix.of({"norms": 1.0, "small": 0.5}),
    Mix.of({"whole": Pair(0.3, 1.0), "few": 1.0}),
    Mix.of({"norms": (1.0, 0.0), "rslora": 0.7}),
    Mix.of({"ends": 1.0}),
]


def write_dense(root: Path, base: Path) -> Library:
    """Write experts that change all, only vectors, and only the ends; and low-rank ones."""
    write_library(root, base)
    add_dense(root, base, "whole", seed=1)
    add_dense(root, base, "norms", seed=2, only=("norm", "bias"), strength=1.0)
    return add_dense(root, base, "ends", seed=3, only=("embed_tokens", "lm_head"))


def assert_exact(
    reference: Reference, library: Library, answers: Sequence[Answer], mixes: Sequence[Mix]
) -> None:
    experts = {name: library.deltas(name) for name in library.names}
    for answer, mix in zip(answers, mixes, strict=True):
        with reference.changed(experts, mix.as_dict()):
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama, tied embeddings",
        "qwen2, biases",
        "qwen3, query and key norms",
        "gemma3, one layer of two sliding",
        "phi3, fused in the checkpoint",
    ],
)
def test_a_dense_mix_is_the_merge_with_low_rank_ones_on_top(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES[name])
    library = write_dense(tmp_path / "library", base)
    with tiny_engine(base, library, dense=DenseOptions()) as engine:
        answers = engine.go_on(prompts((3, 9, 24, 40, 17, 5, 30, 11)), MIXES, 8)
    assert_exact(Reference(base), library, answers, MIXES)


@pytest.mark.parametrize("name", ["llama", "llama, tied embeddings"])
def test_a_comparison_is_of_each_candidates_own_weights(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES[name])
    library = write_dense(tmp_path / "library", base)
    dense = {m.digest for m in library.managed.values() if m.form == "dense"}
    experts = {expert: library.deltas(expert) for expert in library.names}
    mixes = [mix for mix in MIXES if not mix.is_base]
    tokens = prompts((24,))[0]
    with tiny_engine(base, library, dense=DenseOptions()) as engine:
        client = Front(engine.llm, Numbers()).client()
        asked = Prompt(" ".join(map(str, tokens)), chat=False)
        ask = client.compare(asked, mixes, Window(last=9), library.digests, dense)
        got = asyncio.run(ask)
        answers = engine.go_on(prompts((9, 9)), [Mix(), MIXES[0]], 4)
    reference = Reference(base)
    assert_compared(got, reference, experts, tokens, mixes, len(tokens) - 9)
    assert_exact(reference, library, answers, [Mix(), MIXES[0]])


@dataclass
class World:
    """A tiny Llama, its library, and the slow maths."""

    base: Path
    library: Library
    reference: Reference


class Stream:
    """Requests of an engine that runs step by step, beside which they come and go."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.core = engine.llm.llm_engine
        self.scheduler = self.core.engine_core.engine_core.scheduler
        self.mixes: dict[str, Mix] = {}
        self.answers: dict[str, Answer] = {}
        self.cached: dict[str, int] = {}

    def start(self, prompt: list[int], mix: Mix, tokens: int) -> str:
        from vllm import SamplingParams

        name = str(len(self.mixes))
        self.mixes[name] = mix
        params = SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=0, detokenize=False
        )
        request = self.engine.request(mix)
        self.core.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=request)
        return name

    def step(self, steps: int = 100_000) -> None:
        for _ in range(steps):
            if not self.core.has_unfinished_requests():
                return
            for output in self.core.step():
                if output.finished and output.outputs[0].finish_reason != "abort":
                    self.answers[output.request_id] = read_answer(output)
                    self.cached[output.request_id] = output.num_cached_tokens or 0

    def ask(self, prompt: list[int], mix: Mix, tokens: int = 4) -> str:
        name = self.start(prompt, mix, tokens)
        self.step()
        return name

    def assert_exact(self, world: World) -> None:
        names = [*self.answers]
        mixes = [self.mixes[name] for name in names]
        assert_exact(world.reference, world.library, [self.answers[n] for n in names], mixes)

    def watch_turns(self) -> list[tuple[float, set[Any], Any]]:
        """Return what turns are given, from now on: the time, who is ready, whose turn it is.

        The clock is the steps', so that a busy machine changes nothing.
        """
        turns = self.scheduler._turns
        seen: list[tuple[float, set[Any], Any]] = []
        choose = turns.choose

        def record(ready: set[Any], _: float) -> Any:
            now = STEP_S * len(seen)
            key = choose(ready, now)
            seen.append((now, set(ready), key))
            return key

        turns.choose = record
        return seen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("dense")
    base = write_base(folder / "base", BASES["llama"])
    return World(base, write_dense(folder / "library", base), Reference(base))


def find_longest_wait(turns: Sequence[tuple[float, set[Any], Any]]) -> float:
    """Return how long a mix that was ready has waited at most."""
    since: dict[Any, float] = {}
    longest = 0.0
    for now, ready, active in turns:
        since = {key: since.get(key, now) for key in ready}
        longest = max([longest, *(now - begun for begun in since.values())])
        since.pop(active, None)
    return longest


DENSE_MIXES = [MIXES[0], MIXES[2], MIXES[5], MIXES[6], MIXES[7]]


def run_stream(stream: Stream, rng: random.Random, count: int) -> None:
    """Send requests of five dense mixes, the base and low-rank ones, a few at a time."""
    kinds = [*DENSE_MIXES, Mix(), MIXES[3], MIXES[4]]
    for begun in range(count):
        prompt = prompts((rng.randint(2, 40),))[0]
        prompt = [(token + begun) % SHAPE["vocab_size"] for token in prompt]
        stream.start(prompt, rng.choice(kinds), rng.randint(1, 12))
        stream.step(rng.choice([0, 0, 1, 3]))
    stream.step()


@pytest.mark.parametrize("settings", [{}, {"async_scheduling": False}])
def test_a_stream_over_five_dense_mixes_is_the_offline_merges_within_the_bound(
    world: World, settings: dict[str, Any]
) -> None:
    dense = DenseOptions(max_wait_s=1.0)
    with tiny_engine(world.base, world.library, dense=dense, **settings) as engine:
        stream = Stream(engine)
        turns = stream.watch_turns()
        run_stream(stream, random.Random(1), 200)
        assert len({active for _, _, active in turns}) > 5
        assert find_longest_wait(turns) < dense.max_wait_s
        assert not stream.scheduler._live
    assert len(stream.answers) == 200
    stream.assert_exact(world)


def test_a_mix_finds_its_cached_prefix_after_others_had_their_turn(world: World) -> None:
    prompt = prompts((100,))[0]
    with tiny_engine(world.base, world.library, dense=DenseOptions(), block_size=32) as engine:
        stream = Stream(engine)
        first, other, again = (stream.ask(prompt, MIXES[i]) for i in (0, 2, 0))
        base, same = (stream.ask(prompt, Mix()) for _ in range(2))
    assert [stream.cached[n] for n in (first, other, again, base, same)] == [0, 0, 96, 0, 96]
    assert stream.answers[first].tokens == stream.answers[again].tokens
    stream.assert_exact(world)


def test_without_a_prefix_cache_answers_are_the_same(world: World) -> None:
    prompt = prompts((40,))[0]
    with tiny_engine(
        world.base, world.library, dense=DenseOptions(), enable_prefix_caching=False
    ) as engine:
        stream = Stream(engine)
        for mix in (*MIXES, *MIXES):
            stream.start(prompt, mix, 6)
        stream.step()
    assert not any(stream.cached.values())
    stream.assert_exact(world)


@pytest.mark.parametrize("settings", [{}, {"async_scheduling": False}])
def test_with_little_memory_requests_are_preempted_and_answers_stay_the_same(
    world: World, settings: dict[str, Any]
) -> None:
    small = {"block_size": 32, "kv_cache_memory_bytes": 400 * 1024, "max_model_len": 192}
    with tiny_engine(
        world.base, world.library, dense=DenseOptions(max_wait_s=0.05), **small, **settings
    ) as engine:
        stream = Stream(engine)
        preempted = count_calls(stream.scheduler, "_preempt_request")
        for i, mix in enumerate([*DENSE_MIXES, Mix(), MIXES[3]] * 2):
            stream.start([*prompts((40 + 5 * i,))[0]], mix, 60)
            stream.step(2)
        stream.step()
    assert len(stream.answers) == 14
    assert preempted
    stream.assert_exact(world)


def count_calls(owner: Any, method: str) -> list[Any]:
    calls: list[Any] = []
    stock = getattr(owner, method)

    def count(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return stock(*args, **named)

    setattr(owner, method, count)
    return calls


def test_requests_that_are_given_up_leave_nothing_behind(world: World) -> None:
    rng = random.Random(2)
    with tiny_engine(world.base, world.library, dense=DenseOptions(max_wait_s=0.5)) as engine:
        stream = Stream(engine)
        for i in range(40):
            stream.start(prompts((10 + i,))[0], rng.choice([*DENSE_MIXES, Mix()]), 20)
            stream.step(rng.choice([0, 1, 2]))
            if i % 3 == 0:
                stream.core.abort_request([str(rng.randrange(i + 1))])
        stream.step()
        assert not stream.scheduler._live
        assert not stream.scheduler.requests
    assert 20 < len(stream.answers) < 40
    stream.assert_exact(world)


def dense_of(engine: Engine) -> Any:
    found: list[Any] = engine.llm.collective_rpc(lambda worker: worker._tta_manager.model.dense)
    return found[0]


def test_after_a_thousand_switches_the_base_is_the_same_bit_for_bit(world: World) -> None:
    rng = random.Random(3)
    with tiny_engine(world.base, world.library, dense=DenseOptions()) as engine:
        dense = dense_of(engine)
        before = {name: values.clone() for name, values in dense.values().items()}
        keys = [read_order(engine.request(mix)).dense for mix in DENSE_MIXES]
        for _ in range(1000):
            dense.use(rng.choice([*keys, ()]))
        dense.use(keys[0])
        assert not all(torch.equal(v, before[name]) for name, v in dense.values().items())
        dense.use(())
        assert all(torch.equal(v, before[name]) for name, v in dense.values().items())


def test_a_switch_that_fails_half_way_is_made_good_by_the_next(world: World) -> None:
    with tiny_engine(world.base, world.library, dense=DenseOptions()) as engine:
        stream, dense = Stream(engine), dense_of(engine)
        stream.ask(prompts()[2], MIXES[0])
        stock = dense._writer.write

        def fail(weights: Sequence[MixedWeight]) -> None:
            dense._writer.write = stock
            stock(weights[:7])
            weights[7].values.fill_(torch.nan)
            raise MemoryError("made for this test")

        dense._writer.write = fail
        broken = stream.start(prompts()[1], MIXES[2], 4)
        with pytest.raises(MemoryError):
            stream.step()
        assert dense.key is None
        stream.core.abort_request([broken])
        for mix in MIXES:
            stream.ask(prompts()[3], mix)
    stream.assert_exact(world)


def test_a_mix_that_all_use_is_folded_while_it_pays_and_answers_stay_the_same(
    world: World,
) -> None:
    dense = DenseOptions(fold=True)
    few, many = MIXES[3], Mix.of({"small": Pair(0.5, 1.0), "few": -0.6, "rslora": (0.2, 0.9)})
    with tiny_engine(world.base, world.library, dense=dense) as engine:
        stream, weights = Stream(engine), dense_of(engine)
        before = {name: values.clone() for name, values in weights.values().items()}
        weights.bytes_s = 1e15  # so that it pays at once
        seen = []
        for mix in (few, many, Mix.of({"whole": 1.0, "small": 0.5})):
            for length in (9, 17):
                stream.start(prompts((length,))[0], mix, 12)
            while stream.core.has_unfinished_requests():
                stream.step(1)
                seen.append(weights.folded is not None)
            stream.ask(prompts()[0], MIXES[1])
            assert weights.folded is None
            assert all(torch.equal(v, before[n]) for n, v in weights.values().items())
        for mix in (*MIXES, few, few):
            stream.start(prompts((20,))[0], mix, 6)
        stream.step()
    assert sum(seen) > 20
    stream.assert_exact(world)
