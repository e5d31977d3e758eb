"""Twin-Merging served: parts in slots against the experts that they were made of."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.library.library import Library
from adapters.library.twins import TwinTies
from adapters.mix import Mix, MixRules
from router.policies.twin import TwinOptions, TwinPolicy
from router.scoring.heads import Head
from tests.factories.engines import assert_same, workers_of
from tests.factories.inline_world import Asked, World, ask
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tests.factories.twins import add_twins
from tests.reference import Reference
from tta_serve.engine import wire

NAMES = ("few", "rslora", "small")
SHARED_WEIGHT = 0.3
PARTS = {f"t-{name}": name for name in NAMES}


def make_twin_library(root: Path, base: str) -> tuple[Path, Library]:
    folder = write_base(root / "base", BASES[base])
    return folder, add_twins(write_library(root / "library", folder), NAMES)


def rules_of(library: Library) -> MixRules:
    ties = TwinTies.of(library.parts, library.digests)
    return MixRules(frozenset(library.names), 2, shared=ties.shared, aside=ties.aside)


def in_originals(mix: Mix) -> dict[str, float]:
    """Return a mix of parts in terms of whole experts, by the paper's formulas.

    s + sum_k w_k (delta_k - s) is the sum over j of (lambda (1 - sum_k w_k) + w_j) delta_j.
    """
    w = {PARTS[name]: c for name, c in mix.coefficients if name in PARTS}
    rest = SHARED_WEIGHT * (1 - sum(float(c) for c in w.values() if isinstance(c, float)))
    found = {}
    for name in NAMES:
        own = w.get(name, 0.0)
        assert isinstance(own, float)
        found[name] = rest + own
    return found


@pytest.mark.parametrize(
    "base", ["llama", "qwen3, query and key norms", "phi3, fused in the checkpoint"]
)
def test_one_exclusive_part_is_its_expert_and_none_is_what_they_share(
    tmp_path: Path, base: str
) -> None:
    folder, library = make_twin_library(tmp_path, base)
    rules, reference = rules_of(library), Reference(folder)
    pins = [rules.mix({part: 1.0}) for part in PARTS]
    blend = rules.mix({"t-small": 0.5, "t-few": 0.25})
    alone = rules.mix({"t-shared": 1.0})
    mate = rules.mix({"small": 0.5, "rslora": -0.25})
    with tiny_engine(folder, library) as engine:
        mixes = [*pins, alone, blend, mate, Mix()]
        answers = engine.go_on(prompts((9,) * len(mixes)), mixes, 8)
        for answer, mix in zip(answers, mixes, strict=True):
            coefficients = mix.as_dict() if mix in (mate, Mix()) else in_originals(mix)
            with reference.merged(library.experts, coefficients):
                assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))
        whole = [Mix.of({name: 1.0}) for name in PARTS.values()]
        theirs = engine.go_on(prompts((9,) * len(mixes))[:3], whole, 8)
        for part, expert in zip(answers, theirs, strict=False):
            assert part.tokens == expert.tokens


@pytest.mark.parametrize("abstain", ["shared", "base"])
def test_a_pass_that_decides_has_the_shared_part_on(tmp_path: Path, abstain: str) -> None:
    folder, library = make_twin_library(tmp_path, "llama")
    world = World.of(folder, library)
    rules = rules_of(library).narrow(PARTS)
    policy = TwinPolicy(
        TwinOptions(prefix="t", abstain="shared" if abstain == "shared" else "base"),
        "t-shared",
        None,  # type: ignore[arg-type] # its head is given
    )
    parts = [world.head.names.index(part) for part in PARTS]
    head = cut(world.head, parts)
    heads = policy.finish_heads([head])
    with world.engine() as engine:
        name = asyncio.run(workers_of(engine.llm).install(heads, library.digests, rules))
        generator = random.Random(4)
        asked = [
            Asked(prompt, wire.make_undecided_request(name), (0, len(prompt)))
            for prompt in prompts([generator.randint(3, 30) for _ in range(12)])
        ]
        seen = set()
        for got in ask(engine, asked):
            units = zip(head.names, got.decided.units, strict=True)
            mix = rules.mix({part: number * rules.grid for part, number in units})
            seen.add(mix)
            if mix.is_base and abstain == "shared":
                mix = Mix.of({"t-shared": 1.0})
            world.assert_answer(got.answer, mix, got.decided.since)
        assert len(seen) >= 4
        assert Mix() in seen


def cut(head: Head, rows: list[int]) -> Head:
    """Return a head over some of its experts."""
    kept = [*rows, len(head.names)]
    return replace(
        head,
        names=tuple(head.names[row] for row in rows),
        weight=head.weight[kept],
        bias=head.bias[kept],
    )
