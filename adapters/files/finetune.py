"""Full fine-tunes, as their difference from the base."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint, are_same
from adapters.files.quantised import find_packed, name_within
from adapters.files.safetensors_reader import FLOATS
from adapters.files.servable import EMBEDDING, HEAD, is_in_tower

# Operands of another dtype are converted whole; by blocks, memory does not hold the base in float32
# as well.
_BLOCK = 1 << 20
# Savers differ in whether they keep these, which are computed and never trained.
_BUFFER = re.compile(
    r".*(\.inv_freq|\.(cos|sin)_cached|\.position_ids|\.attn(ention)?\.(masked_)?bias)"
)
# What wrappers of training put before names.
_WRAPPERS = re.compile(r"((_orig_mod|module|_fsdp_wrapped_module)\.)+")


@dataclass(frozen=True)
class TaskVector:
    """The deltas tuned - base (task vectors, arXiv 2212.04089), float32, where the two differ.

    Weights are told apart from buffers, which are computed, and have the base's names whatever
    wrappers of training or containers such as `language_model` they are saved with. A head that is
    tied to the embedding may be in one checkpoint and not in the other, since savers do either;
    where it is, it must then be equal to the embedding.
    """

    base: Checkpoint
    tuned: Checkpoint
    """The base after its fine-tune."""
    partial: bool = False
    """Whether what no weight of the base corresponds to may be left out."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that differs.

        Both checkpoints are read once for it, one weight at a time.

        Raises ExpertError that names the weights if the two have not the same weights of the same
        shapes and may not, or differ in one that is not float16, bfloat16 or float32.
        """
        if self.left_out and not self.partial:
            raise ExpertError(
                f"{self.tuned.folder} has other weights than the base: {_some(self.notes)}; add it"
                " with --rank or --energy, which keep what both have"
            )
        base = self.base.shapes
        return {
            weight: base[weight] for weight in sorted(self._sources) if not self._is_equal(weight)
        }

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Why a weight of either has no counterpart in the other, by its name.

        Raises ExpertError that names the weights if the fine-tune lacks some that text goes
        through beside a head, or has some of other shapes that are not resized vocabularies; and
        if the base is quantised.
        """
        if packed := find_packed(self.base.dtypes):
            raise ExpertError(
                f"the base {self.base.folder} is quantised ({packed[0]} holds packed values), and a"
                " fine-tune is no change of such values: use a library of the base in 16 bits"
            )
        base, found = self.base.shapes, self._renamed
        missing = [
            weight
            for weight in sorted(base.keys() - found.keys())
            if not _BUFFER.fullmatch(weight) and not _is_tied(self.base, weight)
        ]
        shapes = {weight: self.tuned.shapes[source] for weight, source in found.items()}
        other = {w: shape for w, shape in sorted(shapes.items()) if base.get(w, shape) != shape}
        self._check_same_model(missing, other)

        reasons = dict.fromkeys(missing, "the fine-tune has none")
        for weight, shape in other.items():
            reasons[weight] = f"it has {shape[0]} rows, the base's {base[weight][0]}"
        for weight in sorted(found.keys() - base.keys()):
            if not _BUFFER.fullmatch(weight) and not _is_tied(self.tuned, found[weight]):
                reasons[weight] = "the base has none"
        return reasons

    def _check_same_model(self, missing: list[str], other: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ExpertError if weights are missing or of other shapes that are in no vocabulary."""
        base = self.base.shapes
        lost = [w for w in missing if not w.endswith(HEAD) and not is_in_tower(w)]
        wrong = [
            f"{weight} {shape}, not {base[weight]}"
            for weight, shape in other.items()
            if not weight.endswith((HEAD, EMBEDDING)) or shape[1:] != base[weight][1:]
        ]
        for names, what in ((lost, "lacks"), (wrong, "has other shapes")):
            if names:
                raise ExpertError(
                    f"{self.tuned.folder} {what}: {_some(names)}; a fine-tune of just this base is"
                    " wanted, saved whole by save_pretrained"
                )

    @property
    def notes(self) -> list[str]:
        """What is left out, a sentence a weight."""
        return [f"{weight} is left out, {reason}" for weight, reason in self.left_out.items()]

    def delta(self, weight: str) -> Tensor:
        """Return tuned - base of one weight, float32.

        Raises KeyError if the weight is not touched, ExpertError for NaN or infinite values.
        """
        shape = self.shapes[weight]
        delta = self.tuned.read(self._sources[weight]).float()
        base = self.base.read(weight)
        assert delta.shape == base.shape == shape
        for part, other in zip(
            delta.view(-1).split(_BLOCK), base.view(-1).split(_BLOCK), strict=True
        ):
            part.sub_(other)
        if not all(bound.isfinite() for bound in delta.aminmax()):
            raise ExpertError(
                f"{weight} of {self.tuned.folder} minus the base is NaN or infinite; the fine-tune"
                " is damaged"
            )
        return delta

    def factors(self, weight: str) -> None:
        """Return None: a full fine-tune is not known by factors."""

    @property
    def nbytes(self) -> int:
        """How many bytes the touched weights have in the fine-tune."""
        sources = map(self._sources.__getitem__, self.shapes)
        return sum(self.tuned.files[source].tensors[source].nbytes for source in sources)

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """The fine-tune's names of weights by those that the base would have for them."""
        tails = Counter(map(name_within, self.base.files))
        by_tail = {name_within(w): w for w in self.base.files if tails[name_within(w)] == 1}
        found: dict[str, str] = {}
        for source in self.tuned.files:
            name = _WRAPPERS.sub("", source)
            weight = name if name in self.base.files else by_tail.get(name_within(name), name)
            if weight in found:
                raise ExpertError(
                    f"{self.tuned.folder} has {found[weight]} and {source}: save one of them"
                )
            found[weight] = source
        return found

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The fine-tune's weight that stands for each of the base's that it may change.

        That is the weight of the same name, or the embedding for a tied head.
        """
        return {
            weight: self._renamed.get(weight) or _embedding(self.tuned)
            for weight in self.base.files
            if weight not in self.left_out and not _BUFFER.fullmatch(weight)
        }

    def _is_equal(self, weight: str) -> bool:
        """Whether a weight has the same values in both, in whatever dtypes."""
        source = self._sources[weight]
        if are_same(self.base, weight, self.tuned, source):
            return True
        kinds = self.base.dtypes[weight], self.tuned.dtypes[source]
        if not FLOATS.issuperset(kinds):
            raise ExpertError(
                f"{weight} is {kinds[1]} in {self.tuned.folder} and {kinds[0]} in the base; save"
                " both in bfloat16, float16 or float32"
            )
        return torch.equal(self.base.read(weight).float(), self.tuned.read(source).float())


def _embedding(checkpoint: Checkpoint) -> str:
    """Return the name of a checkpoint's token embedding; empty if there is not just one."""
    found = [weight for weight in checkpoint.files if weight.endswith(EMBEDDING)]
    return found[0] if len(found) == 1 else ""


def _is_tied(checkpoint: Checkpoint, weight: str) -> bool:
    """Whether a weight is a head that equals the embedding."""
    embedding = _embedding(checkpoint)
    return bool(weight.endswith(HEAD) and embedding) and are_same(
        checkpoint, weight, checkpoint, embedding
    )


def _some(names: list[str]) -> str:
    """Return the first names, and how many there are beyond them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
