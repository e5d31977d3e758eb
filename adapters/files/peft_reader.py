"""The tensors of a PEFT LoRA folder: each is known for what it is, or the folder is refused."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files.checkpoint import Checkpoint, are_same, find_tensor_files
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.files.peft_config import MERGE, LoraSettings, read_settings
from adapters.files.peft_names import COPIES, BaseNames, TensorKey
from adapters.files.safetensors_reader import FLOATS, TensorFile
from adapters.files.servable import EMBEDDING, HEAD, ServableWeights

_STEM = WEIGHTS_FILE.removesuffix(".safetensors")
_MAX_WEIGHTS = 1 << 34
ADD = "add it with its base: tta experts add FOLDER --name NAME --rank R (or --dense)"


class StoredTensor(NamedTuple):
    """A tensor in a PEFT folder."""

    file: TensorFile
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.file.tensors[self.key].shape

    def read(self) -> Tensor:
        """Return it in float32."""
        return self.file.read(self.key).float()


@dataclass(frozen=True)
class AdapterParts:
    """What an adapter does to each weight, by the base's names of weights."""

    expert: str
    """The expert's name."""
    factors: dict[str, LowRank] = field(default_factory=dict)
    """What is added, the scale in b."""
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    """The norms that DoRA gives to the rows of a sum; to the columns, of an embedding."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """What is added to biases."""
    copies: dict[str, StoredTensor] = field(default_factory=dict)
    """What is there in place of the base's own weight, before anything is added."""

    @property
    def is_low_rank(self) -> bool:
        """Whether factors are all of it."""
        return not (self.magnitudes or self.biases or self.copies)

    def to_expert(self) -> Expert:
        """Return the factors as an expert; raise ExpertError if one is no sound one, or none is."""
        by_module = {weight.removesuffix(".weight"): low for weight, low in self.factors.items()}
        return Expert(self.expert, by_module)


def read_adapter(path: Path, name: str, base: Checkpoint | None) -> AdapterParts:
    """Read the tensors of a PEFT LoRA folder.

    Args:
        path: The folder.
        name: The expert's.
        base: What it changes. Without it, weights have the names of the folder, and what cannot be
            told without the base's own weights is refused.

    Raises ExpertError for a tensor or an option that is not followed just as PEFT does, and
    LibraryError for a file that leads out of the folder.
    """
    settings = read_settings(path, name)
    if base is None and settings.needs_base:
        raise ExpertError(
            f"expert {name!r}: {_why(settings)}, which changes the base's own weights and is no"
            f" plain LoRA; {ADD}"
        )
    reader = _Reader(settings, base)
    modules = defaultdict[str, dict[str, StoredTensor]](dict)
    copies = []
    for (owner, part), stored in _sort(path, name).items():
        if part in COPIES:
            copies.append((part, owner, stored))
        else:
            modules[owner][part] = stored
    for module, parts in modules.items():
        reader.read_module(module, parts)
    for copy in copies:
        reader.read_copy(*copy)
    return reader.parts


def _why(settings: LoraSettings) -> str:
    reasons = {
        "use_dora": "DoRA rescales rows of the merged weight",
        "modules_to_save": "it holds full copies of modules",
        "lora_bias": "it trains a bias beside B",
        "bias": "it trains biases",
    }
    off: tuple[object, ...] = (None, False, [], "none")
    on = next(option for option in reasons if settings.options.get(option) not in off)
    return f"{on} is set and {reasons[on]}"


class _Reader:
    """Puts what is read under the base's names."""

    def __init__(self, settings: LoraSettings, base: Checkpoint | None) -> None:
        self._settings = settings
        self._base = base
        self._names = BaseNames(base) if base else None
        self.parts = AdapterParts(settings.expert)

    def read_module(self, module: str, stored: Mapping[str, StoredTensor]) -> None:
        """Read the factors of a module, and what lies beside them."""
        key = next(iter(stored.values())).key
        if not self._settings.targets(module):
            raise self._error(
                f"tensor {key} is of a module that {CONFIG_FILE} does not target, so that PEFT"
                " leaves it out; name the module in target_modules, or remove the tensor"
            )
        low_rank, of_embedding = self._read_factors(module, stored)
        shape = (low_rank.b.shape[0], low_rank.a.shape[1])
        weight = self._find(f"{module}.weight", shape)
        if weight in self.parts.factors:
            raise self._error(f"tensor {key} and another are of one weight of the base, {weight}")
        self.parts.factors[weight] = low_rank

        if (training := stored.get("training")) and not self._settings.trains_by_velora:
            raise _not_a_factor(self._settings.expert, training.key)
        magnitude = stored.get("magnitude")
        if (magnitude is not None) != self._settings.dora:
            has = f"has {magnitude.key}, and" if magnitude else "has no lora_magnitude_vector, but"
            raise self._error(f"{module} {has} use_dora is {self._settings.dora}; save it again")
        if magnitude is not None:
            self._check_values(weight)
            self.parts.magnitudes[weight] = self._read(magnitude, shape[of_embedding:][:1])
        if bias := stored.get("B bias"):
            if not self._settings.adds_biases:
                raise self._error(f"tensor {bias.key} is a bias, and lora_bias is off")
            place = self._find(f"{weight.removesuffix('.weight')}.bias", shape[:1])
            self._check_values(place)
            self.parts.biases[place] = self._read(bias, shape[:1]) * self._settings.scale(module)

    def read_copy(self, part: str, weight: str, stored: StoredTensor) -> None:
        """Read a whole weight, unless it is a copy of the base's own."""
        is_bias = weight.endswith(".bias") and self._settings.trains_biases
        if part == "copy" and not is_bias and not self._settings.saves(weight):
            raise _not_a_factor(self._settings.expert, stored.key)
        self._check_dtype(stored)
        if self._base is None:
            raise self._error(
                f"tensor {stored.key} is a copy of a weight of the base, with which it must be"
                f" compared; {ADD}"
            )
        found = self._find(weight, stored.shape)
        self._check_values(found)
        if part == "original" and torch.equal(stored.read(), self._base.read(found).float()):
            return
        if found in self.parts.copies:
            raise self._error(f"tensor {stored.key} and another are of one weight, {found}")
        if _is_vocabulary(found) and _is_tied(self._base):
            raise self._error(
                f"tensor {stored.key} changes the embedding or the head of a base in which the two"
                f" are one; {MERGE}"
            )
        self.parts.copies[found] = stored

    def _read_factors(
        self, module: str, stored: Mapping[str, StoredTensor]
    ) -> tuple[LowRank, bool]:
        """Return the factors of a module, the scale in b, and whether it is an embedding."""
        beside = {"magnitude", "B bias", "training"}
        sides = {part: stored[part] for part in stored if part not in beside}
        of_embedding = "embedding A" in sides or "embedding B" in sides
        wanted = {"embedding A", "embedding B"} if of_embedding else {"A", "B"}
        if sides.keys() != wanted:
            has = ", ".join(sorted(sides)) or "no"
            only = "only the " if len(sides) == 1 else "the "
            raise self._error(f"{module} has {only}{has} factor; both of a LoRA are wanted")
        if of_embedding != is_embedding(module):
            raise _not_a_factor(self._settings.expert, next(iter(sides.values())).key)
        a, b = (self._read(sides[part]) for part in sorted(wanted))
        rank, stated = a.shape[0], self._settings.rank(module)
        if rank != stated or b.shape[1] != rank:
            raise self._error(f"{module} has rank {rank}, its config says {stated}")
        if of_embedding:
            a, b = b.t().contiguous(), a.t().contiguous()
        return LowRank(a, b * self._settings.scale(module)), of_embedding

    def _read(self, stored: StoredTensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a tensor of a shape, by default of any matrix."""
        self._check_dtype(stored)
        if stored.shape != shape if shape else len(stored.shape) != 2:
            wanted = shape or "[rank, in] and [out, rank], as of a linear layer"
            shape_text = f"the shape {stored.shape}, wanted {wanted}"
            raise self._error(f"{stored.key} has {shape_text}; {MERGE}")
        value = stored.read()
        if not value.isfinite().all():
            raise self._error(f"{stored.key} holds NaN or infinite values")
        return value

    def _check_dtype(self, stored: StoredTensor) -> None:
        if stored.file.tensors[stored.key].dtype not in FLOATS:
            raise _not_a_factor(self._settings.expert, stored.key)

    def _check_values(self, weight: str) -> None:
        """Raise ExpertError if the values of a weight of the base are not there."""
        if self._base and self._base.dtypes.get(weight) not in FLOATS:
            raise self._error(
                f"{weight} of the base {self._base.folder} is quantised, and what the adapter does"
                " to it cannot be told without its values; use the base from before that"
            )

    def _find(self, weight: str, shape: tuple[int, ...]) -> str:
        return self._names.find(self._settings.expert, weight, shape) if self._names else weight

    def _error(self, text: str) -> ExpertError:
        return ExpertError(f"expert {self._settings.expert!r}: {text}")


def _sort(path: Path, name: str) -> dict[tuple[str, str], StoredTensor]:
    """Return the tensors of a folder by what they are of, a module or a weight, and their part."""
    found: dict[tuple[str, str], StoredTensor] = {}
    adapters: dict[str, str] = {}
    for key, file in find_tensor_files(path, _STEM, max_bytes=_MAX_WEIGHTS).items():
        parsed = TensorKey.parse(key)
        if parsed is None:
            raise _not_a_factor(name, key)
        place = (parsed.owner, parsed.part)
        if place in found:
            raise ExpertError(f"expert {name!r}: {found[place].key} and {key} are one; remove one")
        found[place] = StoredTensor(file, key)
        if parsed.part not in COPIES:
            adapters.setdefault(parsed.adapter, key)
    if len(adapters) > 1:
        raise ExpertError(
            f"expert {name!r}: {' and '.join([*adapters.values()][:2])} are of two adapters; save"
            " each in a folder of its own"
        )
    return found


def _is_tied(base: Checkpoint) -> bool:
    """Whether the head of a base is its embedding, by its configuration or by its values."""
    heads = [weight for weight in base.files if weight.endswith(HEAD)]
    embeddings = [weight for weight in base.files if weight.endswith(EMBEDDING)]
    return ServableWeights.of(base).tied or any(
        are_same(base, head, base, one) for head in heads for one in embeddings
    )


def is_embedding(weight: str) -> bool:
    """Whether a weight, or a module, is an embedding of tokens, by its name."""
    return weight.removesuffix(".weight").rpartition(".")[2] == "embed_tokens"


def _is_vocabulary(weight: str) -> bool:
    return is_embedding(weight) or weight.endswith(HEAD)


def _not_a_factor(expert: str, key: str) -> ExpertError:
    return ExpertError(
        f"expert {expert!r}: tensor {key} is not a LoRA factor of a linear layer in float32,"
        f" float16 or bfloat16; {MERGE}"
    )
