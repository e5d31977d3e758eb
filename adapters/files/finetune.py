"""Full fine-tunes, as their difference from the base."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.safetensors_reader import FLOATS

# Operands of another dtype are converted whole; by blocks, memory does not hold the base in float32
# as well.
_BLOCK = 1 << 20
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True)
class TaskVector:
    """The deltas tuned - base (task vectors, arXiv 2212.04089), float32, where the two differ.

    A head that is tied to the embedding may be in one checkpoint and not in the other, since savers
    do either; where it is, it must then be equal to the embedding.
    """

    base: Checkpoint
    tuned: Checkpoint
    """The base after its fine-tune."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that differs.

        Both checkpoints are read once for it, one weight at a time.

        Raises ExpertError that names the weights if the two have not the same weights of the same
        shapes, or differ in one that is not float16, bfloat16 or float32.
        """
        base, tuned = self.base.shapes, self.tuned.shapes
        missing = [w for w in sorted(base.keys() - tuned.keys()) if not _is_tied(self.base, w)]
        added = [w for w in sorted(tuned.keys() - base.keys()) if not _is_tied(self.tuned, w)]
        other = [
            f"{w} {tuned[w]}, not {base[w]}"
            for w in sorted(base.keys() & tuned.keys())
            if base[w] != tuned[w]
        ]
        for wrong, what in ((missing, "lacks"), (added, "adds"), (other, "has other shapes")):
            if wrong:
                raise ExpertError(
                    f"{self.tuned.folder} {what}: {_some(wrong)}; a fine-tune of just this base is"
                    " wanted, saved whole by save_pretrained, its vocabulary not resized"
                )
        return {
            weight: shape for weight, shape in sorted(base.items()) if not self._is_equal(weight)
        }

    def delta(self, weight: str) -> Tensor:
        """Return tuned - base of one weight, float32.

        Raises KeyError if the weight is not touched, ExpertError for NaN or infinite values.
        """
        shape = self.shapes[weight]
        delta = self.tuned.read(self._source(weight)).float()
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
        sources = map(self._source, self.shapes)
        return sum(self.tuned.files[source].tensors[source].nbytes for source in sources)

    def _source(self, weight: str) -> str:
        """Return the fine-tune's weight that stands for one of the base.

        That is the weight of the same name, or the embedding for a tied head.
        """
        return weight if weight in self.tuned.files else _embedding(self.tuned)

    def _is_equal(self, weight: str) -> bool:
        """Whether a weight has the same values in both, in whatever dtypes."""
        source = self._source(weight)
        if _are_same(self.base, weight, self.tuned, source):
            return True
        kinds = self.base.dtypes[weight], self.tuned.dtypes[source]
        if not FLOATS.issuperset(kinds):
            raise ExpertError(
                f"{weight} is {kinds[1]} in {self.tuned.folder} and {kinds[0]} in the base; save"
                " both in bfloat16, float16 or float32"
            )
        return torch.equal(self.base.read(weight).float(), self.tuned.read(source).float())


def _are_same(one: Checkpoint, weight: str, other: Checkpoint, source: str) -> bool:
    """Whether two weights are the same bytes of the same dtype and shape."""
    a, b = one.files[weight], other.files[source]
    if a.tensors[weight][:2] != b.tensors[source][:2]:
        return False
    return torch.equal(a.read_bytes(weight), b.read_bytes(source))


def _embedding(checkpoint: Checkpoint) -> str:
    """Return the name of a checkpoint's token embedding; empty if there is not just one."""
    found = [weight for weight in checkpoint.files if weight.endswith(_EMBEDDING)]
    return found[0] if len(found) == 1 else ""


def _is_tied(checkpoint: Checkpoint, weight: str) -> bool:
    """Whether a weight is a head that equals the embedding."""
    embedding = _embedding(checkpoint)
    return bool(weight.endswith(_HEAD) and embedding) and _are_same(
        checkpoint, weight, checkpoint, embedding
    )


def _some(names: list[str]) -> str:
    """Return the first names, and how many there are beyond them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
