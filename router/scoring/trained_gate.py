"""A trained router: a small head on the features that `retrieval` reads, and its files.

    z = (f - mean) / std
    p = softmax(head(z) / T), [K + 1]          head: Linear, or Linear, GELU, Linear

The outputs are the K experts in the order of their names and, last, "none of them", learned from
everyday prompts. Twin-Merging (Lu et al. 2024, arXiv 2406.15479) trains such a router on hidden
states of its model. Its own has three layers, 157 M parameters for 14 B; the few dozen prompts of
an expert that a library has cannot teach so many.

A gate that was trained with prompts that want the work of two experts has a second head:

    p(the request wants several experts) = 1 / (1 + exp(-(v z + c)))
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.errors import AdapterError
from adapters.files.atomic import write_atomically
from adapters.files.safetensors_reader import TensorFile
from adapters.files.safetensors_writer import save
from adapters.library.entries import write_json
from adapters.library.manifest import read_json
from router.errors import RouterError


@dataclass(frozen=True)
class GateRecord:
    """What a gate's JSON file says of it."""

    digests: Mapping[str, str]
    """The experts that it knows, by name, with the digests of their weights."""
    layer: int
    """The decoder layer whose input the features are."""
    hidden: int
    """The width of the hidden layer, 0 for a linear head."""
    temperature: float
    """T."""
    threshold: float
    """The base answers if 1 - p(none) is below it."""
    figures: Mapping[str, float]
    """How well the gate does on prompts that it was not trained on."""
    voices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same by the voice that was left out of the training."""
    tensors: str = ""
    """The SHA-256 of the safetensors file that belongs to this record."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 < self.threshold < 1):
            raise ValueError("temperature must be above 0, threshold between 0 and 1")


@dataclass(frozen=True)
class Gate:
    """A trained head with all that turns features into its outputs."""

    about: GateRecord
    """What the gate knows, and its calibration."""
    mean: Tensor
    """[d], of the features in training."""
    std: Tensor
    """[d], likewise."""
    head: nn.Sequential
    """[..., d] -> [..., K + 1]."""
    several: Tensor | None = None
    """[d + 1], v and, last, c; None if it was trained without such prompts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The K experts, in the order of the outputs."""
        return tuple(sorted(self.about.digests))

    def compute_logits(self, features: Tensor) -> Tensor:
        """Return head(z) / T, [..., K + 1].

        Args:
            features: f, [..., d].
        """
        with torch.no_grad():
            logits: Tensor = self.head((features - self.mean) / self.std)
        return logits / self.about.temperature

    def compute_several(self, features: Tensor) -> Tensor:
        """Return v z + c, the logit that requests want several experts, [...].

        Args:
            features: f, [..., d].
        """
        if self.several is None:
            return torch.full(features.shape[:-1], -math.inf)
        z = (features - self.mean) / self.std
        return z @ self.several[:-1] + self.several[-1]

    def as_linear(self) -> tuple[Tensor, Tensor]:
        """Return weight [K + 1, d] and bias [K + 1] of z -> head(z) / T.

        Raises:
            RouterError: The gate has a hidden layer.
        """
        if self.about.hidden:
            raise RouterError(
                "a gate with a hidden layer cannot decide inline; make it anew with: tta router"
                " train --hidden 0"
            )
        (layer,) = self.head
        assert isinstance(layer, nn.Linear)
        return (
            layer.weight.detach() / self.about.temperature,
            layer.bias.detach() / self.about.temperature,
        )

    def save(self, folder: Path, name: str = "gate") -> None:
        """Write `<name>.safetensors` and `<name>.json`, in place of what is there.

        Each file is put in its place whole. Who reads between the two finds that they do not belong
        together.

        Raises:
            LibraryError: The disk refuses.
        """
        file, record = _files(folder, name)
        tensors = {"mean": self.mean, "std": self.std, **self.head.state_dict()}
        if self.several is not None:
            tensors["several"] = self.several
        write_atomically(file, lambda part: save(tensors, part), replace=True)
        write_json(record, replace(self.about, tensors=_digest(file)), replace=True)

    @classmethod
    def load(cls, folder: Path, name: str = "gate") -> "Gate":
        """Read the gate that `save` wrote under this name.

        Raises:
            RouterError: There is none, or its files are not as `save` wrote them.
        """
        tensors, record = _files(folder, name)
        for file in (tensors, record):
            if not file.is_file():
                raise RouterError(
                    f"there is no {file}; make it with: tta router train --library DIR --base"
                    " FOLDER"
                )
        try:
            about = read_json(GateRecord, record)
            opened = TensorFile.open(tensors)
            if _digest(tensors) != about.tensors:
                raise RouterError(f"{tensors} is not the one that {record} is about")
            found = {key: opened.read(key) for key in opened.tensors}
            mean = found.pop("mean")
            std = found.pop("std")
            several = found.pop("several", None)
            head = make_head(len(mean), about.hidden, len(about.digests) + 1)
            head.load_state_dict(found)
            if several is not None and several.shape != (len(mean) + 1,):
                raise RouterError(f"{tensors} has {list(several.shape)} numbers of several experts")
        except (AdapterError, RouterError, KeyError, RuntimeError) as error:
            # The last two come of a record of another head.
            raise RouterError(
                f"{error}; make the gate anew with: tta router train --library DIR --base FOLDER"
            ) from None
        return cls(about, mean, std, head.eval(), several)


def make_head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build an untrained head; `hidden` is the width of its hidden layer, 0 for none."""
    if not hidden:
        return nn.Sequential(nn.Linear(inputs, outputs))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.json"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
