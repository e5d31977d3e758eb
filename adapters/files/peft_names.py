"""The names in a PEFT folder: what each tensor is, and which module of a base it belongs to."""

import re
from collections import defaultdict
from functools import cached_property
from typing import NamedTuple

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.quantised import name_within
from adapters.files.servable import HEAD

PREFIX = "base_model.model."
# What compilers and trainers that split a model wrap modules in, whose names get in between.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_FACTORS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
    "lora_velora_embed": "training",
}
_ORIGINALS = frozenset({"base_layer", "original_module"})
COPIES = frozenset({"copy", "original"})
"""The parts that are whole weights."""
_LAYER = re.compile(r"((?:.+\.)?[^.]+)\.\d+\..+")


class TensorKey(NamedTuple):
    """What the name of a tensor in a PEFT folder says."""

    part: str
    """`A`, `B`, `B bias`, `embedding A`, `embedding B`, `magnitude` or `training` (which only a
    pass backward reads) of a module; `original` of the base's own weight beside them, or `copy` of
    a weight that is saved whole."""
    owner: str
    """The name of the module in transformers; of a copy or an original, that of the weight."""
    adapter: str
    """The adapter's name, empty where the tensor's has none."""

    @classmethod
    def parse(cls, key: str) -> "TensorKey | None":
        """Read a name, without wrappers and PEFT's prefix; return None for one of another kind."""
        parts = [part for part in key.split(".") if part not in _WRAPPERS]
        while parts[:2] == ["base_model", "model"]:
            parts = parts[2:]
        found = [at for at, part in enumerate(parts) if part.startswith("lora_")]
        if not found:
            return _parse_copy(parts)
        at = found[0]
        if not at or parts[at] not in _FACTORS or _ORIGINALS & set(parts[:at]):
            return None
        part, module, rest = _FACTORS[parts[at]], ".".join(parts[:at]), parts[at + 1 :]
        if part in {"A", "B"}:
            if not rest or rest[-1] not in {"weight", "bias"} or (part, rest[-1]) == ("A", "bias"):
                return None
            part += " bias" if rest.pop() == "bias" else ""
        elif part == "magnitude" and rest[-1:] == ["weight"]:
            rest.pop()
        return cls(part, module, "".join(rest)) if len(rest) < 2 else None


def _parse_copy(parts: list[str]) -> TensorKey | None:
    """Read the name of a weight that is saved whole."""
    *module, leaf = parts
    adapter = ""
    part = "copy"
    if module and module[-1] in _ORIGINALS:
        part = "original"
        module.pop()
    elif "modules_to_save" in module[-2:]:
        at = module.index("modules_to_save", -2)
        adapter = "".join(module[at + 1 :])
        del module[at:]
    if leaf not in {"weight", "bias"} or not module or _ORIGINALS & set(module):
        return None
    return TensorKey(part, ".".join([*module, leaf]), adapter)


class BaseNames:
    """The names of a base's weights, found by those that transformers has for them.

    Two names are of the same weight if they are equal without the containers (`model`,
    `language_model` and the like) that they begin with.

    Args:
        base: The base's checkpoint.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base

    def find(self, expert: str, weight: str, shape: tuple[int, ...]) -> str:
        """Return the base's name of a weight.

        Raises ExpertError if the base has none of this name and shape, or more than one.
        """
        shapes = self._base.real_shapes
        named = [weight] if weight in shapes else self._by_tail[name_within(weight)]
        fitting = [name for name in named if shapes[name] == shape]
        if len(fitting) == 1:
            return fitting[0]
        folder = self._base.folder
        if len(fitting) > 1:
            raise ExpertError(
                f"expert {expert!r}: {weight} can be any of {', '.join(fitting)} of the base"
                f" {folder}; name one of them in the adapter's file"
            )
        if named:
            has = " or ".join(f"{name} as {shapes[name]}" for name in named)
            raise ExpertError(
                f"expert {expert!r}: {weight} is to change as {shape}; the base {folder} has {has}"
            )
        if weight.endswith(HEAD):
            raise ExpertError(
                f"expert {expert!r}: the base {folder} has no {HEAD}, its head and embedding are"
                " one weight, which cannot change for one of its two uses alone; train the adapter"
                " without lm_head"
            )
        raise ExpertError(
            f"expert {expert!r}: the base {folder} has no such weight as {weight}, also not with"
            f" other containers (such as model. or language_model.) before {name_within(weight)};"
            f" {self._describe_layers()}"
        )

    @cached_property
    def _by_tail(self) -> dict[str, list[str]]:
        found = defaultdict[str, list[str]](list)
        for weight in self._base.real_shapes:
            found[name_within(weight)].append(weight)
        return found

    def _describe_layers(self) -> str:
        layers = self.layers
        if not layers:
            return "it has no layers that are numbered"
        return f"its layers are named {', '.join(f'{name}.N' for name in layers[:3])}"

    @cached_property
    def layers(self) -> list[str]:
        """The names that the base's layers have before their numbers, the most frequent first."""
        counts = defaultdict[str, int](int)
        for weight in self._base.files:
            if match := _LAYER.match(weight):
                counts[re.sub(r"\.\d+\..*", "", match[1])] += 1
        return sorted(counts, key=lambda name: -counts[name])
