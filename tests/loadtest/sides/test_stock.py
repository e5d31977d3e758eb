"""Mixes as adapters of their own: what vLLM's own multi-LoRA is given."""

from pathlib import Path

import pytest
import torch

from adapters.files.peft import load_peft
from adapters.library.library import Library
from loadtest.commands.http_plan import SIDES, Cell, make_bodies
from loadtest.common.mix_supply import MixSupply
from loadtest.common.workload import draw_mixes, numbers_of
from loadtest.sides.stock import find_max_lora_rank, write_adapters


@pytest.fixture(scope="module")
def library(demo_experts: Path) -> Library:
    return Library.open(demo_experts)


def test_an_adapter_is_the_mix_of_its_number(library: Library, tmp_path: Path) -> None:
    mixes = draw_mixes(library.names, 3, 0)
    folders = write_adapters(tmp_path, mixes, library)
    asked = make_bodies(SIDES["b"], Cell("some", 3, 3, 3), MixSupply(mixes))
    for mix, body in zip(mixes, asked, strict=True):
        merged = load_peft(folders[body["model"]])
        module = next(iter(merged.factors))
        wanted = sum(
            c * library.experts[name].factors[module].dense() for name, c in numbers_of(mix).items()
        )
        torch.testing.assert_close(merged.factors[module].dense(), wanted)


def test_any_mix_fits_into_the_rank(library: Library) -> None:
    # Three experts of rank 16 have 48; vLLM knows 32 and 64.
    assert find_max_lora_rank(library) == 64
    assert find_max_lora_rank(library, 1) == 16
