"""Experts come, change and go while requests run.

They are refused whole or exact at once, and old ones serve to the end.
"""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import ExpertError
from adapters.expert import Expert
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import TOLERANCE, Engine, workers_of
from tests.factories.experts import make_expert, make_narrow_expert
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tests.reference import Reference
from tta_serve.engine.options import Capacity
from tta_serve.engine.wire import make_mix_request

PROMPT = prompts((24,))[0]
TOKENS = 24
WEIGHTS = "adapter_model.safetensors"


@dataclass
class World:
    """An engine that runs step by step, its library on disk, and the slow maths."""

    engine: Engine
    base: Path
    root: Path
    reference: Reference
    running: int = 0

    def __post_init__(self) -> None:
        self.workers = workers_of(self.engine.llm)
        self.tokens: dict[str, list[int]] = {}

    def expert(self, name: str) -> Expert:
        return Library.open(self.root).expert(name)

    def load(self, name: str) -> Expert:
        expert = self.expert(name)
        asyncio.run(self.workers.load(name, expert.digest))
        return expert

    def unload(self, expert: Expert) -> bool:
        """Once all requests have ended: workers hear of that with the next step."""
        self.start(expert, 0.0)
        self.step()
        return self.try_unload(expert)

    def try_unload(self, expert: Expert) -> bool:
        return asyncio.run(self.workers.unload(expert.digest))

    def used(self) -> Capacity:
        return asyncio.run(self.workers.count_used())

    def replace(self, name: str, **settings: Any) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)
        make_expert(self.root / name, self.base, layers=range(2), strength=5, **settings)

    def start(self, expert: Expert, coefficient: float = 1.0) -> str:
        """A request that uses one expert; it runs as `steps` are made."""
        from vllm import SamplingParams

        self.running += 1
        request = str(self.running)
        mix = make_mix_request(Mix.of({expert.name: coefficient}), {expert.name: expert.digest})
        params = SamplingParams(
            max_tokens=TOKENS, temperature=0.0, ignore_eos=True, detokenize=False
        )
        self.engine.llm.llm_engine.add_request(
            request, {"prompt_token_ids": PROMPT}, params, lora_request=mix
        )
        return request

    def step(self, steps: int = 1000) -> None:
        engine = self.engine.llm.llm_engine
        for _ in range(steps):
            if not engine.has_unfinished_requests():
                return
            for output in engine.step():
                self.tokens[output.request_id] = list(output.outputs[0].token_ids)

    def assert_right(self, request: str, expert: Expert, coefficient: float = 1.0) -> None:
        """Every token is the reference's most likely one, or as likely."""
        tokens = self.tokens[request]
        assert len(tokens) == TOKENS
        with self.reference.merged({expert.name: expert}, {expert.name: coefficient}):
            found = self.reference.logprobs(PROMPT, tokens)
        chosen = found.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (found.amax(1) - chosen).max() < TOLERANCE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("lifecycle")
    base = write_base(folder / "base", BASES["llama"])
    library = write_library(folder / "library", base)
    reference = Reference(base)
    capacity = Capacity(experts=5, ranks=64, bytes=2**20)
    with tiny_engine(base, library, capacity=capacity, max_num_seqs=16) as engine:
        yield World(engine, base, library.root, reference)


def test_a_loaded_expert_is_exact_at_once_and_gone_after(world: World) -> None:
    before = world.used()
    world.replace("new", seed=11, rank=8)
    new = world.load("new")
    after = world.used()
    assert (after.experts, after.ranks) == (before.experts + 1, before.ranks + 8)
    request = world.start(new, 0.7)
    world.step()
    world.assert_right(request, new, 0.7)
    assert world.unload(new)
    assert world.used() == before


def test_running_requests_finish_with_the_expert_they_began_with(world: World) -> None:
    world.replace("changing", seed=21)
    old = world.load("changing")
    first = world.start(old)
    world.step(8)
    world.replace("changing", seed=22)
    new = world.load("changing")
    second = world.start(new)
    world.step(4)
    assert not world.try_unload(old), "a running request uses it"
    world.step()
    world.assert_right(first, old)
    world.assert_right(second, new)
    assert world.tokens[first] != world.tokens[second], (
        "the same name and prompt, other weights: no cached key of the old"
    )
    assert world.unload(old)
    assert world.unload(new)


def test_columns_serve_again_and_nothing_of_the_old_expert_stays(world: World) -> None:
    before = world.used()
    for seed in range(30, 42):
        world.replace("passing", seed=seed)
        expert = world.load("passing")
        request = world.start(expert)
        world.step()
        world.assert_right(request, expert)
        assert world.unload(expert)
    assert world.used() == before


def spoil(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[-1]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def test_what_does_not_fit_is_refused_whole_and_changes_nothing(world: World) -> None:
    small = world.expert("small")
    before = world.used()
    world.replace("bad", seed=1, rank=64)
    refused(world, "64 more, the capacity is 64")
    world.replace("bad", seed=1, rank=40)
    refused(world, "library.capacity")
    shutil.rmtree(world.root / "bad")
    make_narrow_expert(world.root / "bad", "model.layers.0.mlp.up_proj", (7, 128))
    refused(world, r"weight of \(7, 128\)")
    shutil.rmtree(world.root / "bad")
    make_narrow_expert(world.root / "bad", "model.norm", (512, 128))
    refused(world, "not a linear layer")
    world.replace("bad", seed=1)
    spoil(world.root / "bad")
    refused(world, "NaN")
    assert world.used() == before
    request = world.start(small)
    world.step()
    world.assert_right(request, small)


def refused(world: World, why: str) -> None:
    with pytest.raises(ExpertError, match=why):
        world.load("bad")


def test_one_that_changed_on_disk_or_is_not_there_is_refused(world: World) -> None:
    world.replace("bad", seed=1)
    with pytest.raises(ExpertError, match="changed in the library"):
        asyncio.run(world.workers.load("bad", "0" * 64))
    with pytest.raises(ExpertError, match="holds no expert 'nobody'"):
        asyncio.run(world.workers.load("nobody", "0" * 64))


def test_no_more_experts_than_the_capacity_has(world: World) -> None:
    loaded = []
    for seed in (51, 52):
        world.replace(f"one-{seed}", seed=seed, rank=1)
        loaded.append(world.load(f"one-{seed}"))
    world.replace("bad", seed=53, rank=1)
    refused(world, "5 experts are taken, this needs 1 more, the capacity is 5; unload an expert")
    assert all(world.unload(expert) for expert in loaded)
