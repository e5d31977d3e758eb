"""Coefficients that differ from place to place, and banks that hold what is in use."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.coefficient import Pair
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import Engine, assert_same
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tests.reference import Reference

UNEVEN = [
    Mix.of({"small": Pair(1.0, 0.0), "few": 0.5}),
    Mix.of({"rslora": (0.0, 1.0)}),
    Mix.of({"small": 1.0}),
    Mix.of({"small": (0.7, -0.5), "rslora": Pair(0.0, 0.8), "few": 0.3}),
    Mix.of({"small": Pair((0.7, -0.5), 0.2), "few": Pair((0.0, 1.0), (0.5, 0.25))}),
    Mix(),
]


def check(engine: Engine, library: Library, reference: Reference, mixes: Sequence[Mix]) -> None:
    asked = prompts((3, 9, 24, 40, 17, 11)[: len(mixes)])
    for answer, mix in zip(engine.go_on(asked, mixes, 8), mixes, strict=True):
        with reference.merged(library.experts, mix.as_dict()):
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))


@pytest.mark.parametrize("name", ["llama", "phi3, fused in the checkpoint"])
def test_each_half_and_each_layer_gets_its_own_coefficient(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES[name])
    library = write_library(tmp_path / "library", base)
    reference = Reference(base)
    with tiny_engine(base, library, max_num_seqs=16) as engine:
        check(engine, library, reference, UNEVEN)
        check(engine, library, reference, [Mix.of({n: 1.0}) for n in library.names] + [Mix()] * 2)
        check(engine, library, reference, UNEVEN[::-1])


def test_banks_follow_the_experts_in_use_and_stay_exact(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["llama"])
    library = write_library(tmp_path / "library", base)
    reference = Reference(base)
    with tiny_engine(base, library) as engine:
        whole = bank_bytes(engine)
        engine.go_on(prompts(), [Mix.of({"few": 1.0})] * 5, 100)
        alone = bank_bytes(engine)
        assert alone < whole / 2, "the two experts that nobody uses any more are dropped"
        check(engine, library, reference, UNEVEN)
        assert bank_bytes(engine) == whole
        engine.go_on(prompts(), [Mix()] * 5, 100)
        assert bank_bytes(engine) == whole, "while nobody uses any, none is dropped"


def bank_bytes(engine: Engine) -> int:
    return int(engine.llm.collective_rpc("tta_bytes")[0][0])
