"""How fast one-bit experts are beside their base, and how small beside dense ones.

It is a part of `python -m loadtest dense`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from loadtest.common.measure import Repeats, interleave, median_ratio
from loadtest.common.workload import SHAPES, draw_mixes, make_batch

if TYPE_CHECKING:
    from torch import Tensor

    from adapters.files.checkpoint import Checkpoint
    from adapters.library.library import Library
    from adapters.mix import Mix
    from loadtest.sides.engines import EngineSide

EXPERTS = 6
_SLOTS = 16


@dataclass(frozen=True)
class RandomChange:
    """A small random change of every matrix and norm of a base's decoder layers."""

    base: Checkpoint
    seed: int

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {w: s for w, s in self.base.shapes.items() if ".layers." in w}

    def delta(self, weight: str) -> Tensor:
        import torch

        number = self.seed * len(self.shapes) + list(self.shapes).index(weight)
        generator = torch.Generator().manual_seed(number)
        return torch.randn(self.shapes[weight], generator=generator) * 1e-3

    def factors(self, weight: str) -> None:
        return None


def measure_one_bit(repeats: int = 5) -> dict[str, Any]:
    """Decode 16 requests with 16 mixes of 3 out of 6 one-bit experts, and with the base.

    Returns:
        `one_bit_over_base`, the median over rounds of the ratio of tokens a second;
        `one_bit_bytes_over_dense`, the bytes that a worker keeps of an expert over those of its
        weights in bfloat16; and the rates and bytes that these are made of.
    """
    from loadtest.sides.engines import EngineSide, Mixture
    from loadtest.sides.session import setup_in

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        plain = setup_in(Path(folder))
        library = _make_library(Path(folder) / "library", plain.base)
        setup = type(plain)(plain.base, library, Path(folder))
        mixes = draw_mixes(library.names, _SLOTS)
        sides = [EngineSide(setup), Mixture(setup)]
        try:
            for side in sides:
                side.run(make_batch(SHAPES["decode"], mixes, -1))
            runs = {side.name: partial(_rate, side, mixes) for side in sides}
            values = interleave(runs, Repeats(repeats))
            _, _, kept = sides[1].llm.collective_rpc("tta_used")[0]
        finally:
            for side in sides:
                side.close()
        return {
            "one_bit_over_base": median_ratio(values["mixture"], values["base"]),
            "one_bit_bytes_over_dense": kept / EXPERTS / _count_dense_bytes(library),
            "one_bit_tok_s": median(values["mixture"]),
            "one_bit_base_tok_s": median(values["base"]),
            "one_bit_bytes": kept // EXPERTS,
        }


def _rate(side: EngineSide, mixes: Sequence[Mix], r: int) -> float:
    return side.run(make_batch(SHAPES["decode"], mixes, r)).tok_s


def _make_library(root: Path, base: Path) -> Library:
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.delta_forms import OneBitForm
    from adapters.library.library import Library
    from adapters.library.manifest import About, Source
    from adapters.library.versions import VersionStore

    checkpoint, store = Checkpoint.open(base), VersionStore(root)
    for seed in range(EXPERTS):
        about = About(source=Source("finetune"))
        store.add(f"bit-{seed}", RandomChange(checkpoint, seed), OneBitForm(), about, checkpoint)
    return Library.open(root)


def _count_dense_bytes(library: Library) -> int:
    """Return the bytes of an expert's weights in bfloat16."""
    import math

    shapes: Mapping[str, tuple[int, ...]] = library.deltas(library.names[0]).shapes
    return sum(2 * math.prod(shape) for shape in shapes.values())
