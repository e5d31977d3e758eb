"""One-bit experts of tiny random bases, and what they change of them in plain transformers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.coefficient import Coefficient
from adapters.deltas import Deltas, LowRankDeltas
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import OneBitForm
from adapters.library.library import Library
from adapters.library.manifest import About, Manifest, Source
from adapters.library.versions import VersionStore
from tests.reference import Reference, number_at

_ABOUT = About(source=Source("finetune"))
_ROUTED = (".experts.", ".gate.", ".router.")


@dataclass(frozen=True)
class RandomDeltas:
    """A random change of every weight of a base, about as strong as the base itself."""

    base: Path
    seed: int
    strength: float = 0.1
    """The standard deviation of a matrix's change."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        model = AutoModelForCausalLM.from_pretrained(self.base)
        return {name: tuple(p.shape) for name, p in model.named_parameters()}

    def delta(self, weight: str) -> Tensor:
        index = list(self.shapes).index(weight)
        g = torch.Generator().manual_seed(1000 * self.seed + index)
        shape = self.shapes[weight]
        return torch.randn(shape, generator=g) * (self.strength if len(shape) > 1 else 0.2)

    def factors(self, weight: str) -> None:
        return None


def add_one_bit(  # noqa: PLR0913 - one knob each
    root: Path,
    base: Path,
    name: str,
    seed: int,
    form: OneBitForm | None = None,
    strength: float = 0.1,
) -> Manifest:
    """Add a one-bit expert that changes every weight of a base to a library."""
    deltas = RandomDeltas(base, seed, strength)
    store = VersionStore(root)
    return store.add(name, deltas, form or OneBitForm(), _ABOUT, Checkpoint.open(base))


def served_changes(library: Library, name: str) -> dict[str, Tensor]:
    """Return the dense change of each weight that slots serve of an expert, as it is stored."""
    deltas: Deltas = library.deltas(name)
    unserved = library.manifest(name).report.unserved
    return {w: deltas.delta(w) for w in deltas.shapes if w not in unserved}


@dataclass
class DenseReference:
    """The base in transformers, with changes of any weights merged for the length of a block."""

    reference: Reference
    library: Library

    @cached_property
    def _changes(self) -> dict[str, dict[str, Tensor]]:
        found = {}
        for name in self.library.names:
            if self.library.form(name) == "low_rank":
                low_rank = LowRankDeltas(self.library.expert(name))
                found[name] = {w: low_rank.delta(w) for w in low_rank.shapes}
            else:
                found[name] = served_changes(self.library, name)
        return found

    @contextmanager
    def merged(self, coefficients: Mapping[str, Coefficient], without: str = "") -> Iterator[None]:
        """Merge a mix, but for the change of one weight."""
        weights = dict(self.reference.model.named_parameters())
        clean: dict[str, Tensor] = {}
        for name, coefficient in coefficients.items():
            for weight, change in self._changes[name].items():
                if weight == without:
                    continue
                clean.setdefault(weight, weights[weight].data.clone())
                weights[weight].data += number_at_weight(coefficient, weight, weights) * change
        try:
            yield
        finally:
            for weight, before in clean.items():
                weights[weight].data.copy_(before)


def number_at_weight(coefficient: Coefficient, weight: str, weights: Mapping[str, object]) -> float:
    """The coefficient of a weight, or of a norm, which belongs to what it is before or behind."""
    module = weight.rpartition(".")[0]
    layer, _, leaf = module.rpartition(".")
    own = f"{layer}.pre_feedforward_layernorm.weight" in weights
    behind = own and leaf == "post_attention_layernorm"
    if leaf == "input_layernorm" or behind:
        module = f"{layer}.self_attn.norm"
    return number_at(coefficient, module)
