"""How a routing policy travels from the replica to the workers, which decide by it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from adapters.mix import MixRules
from router.scoring.heads import Head

_TENSORS = ("mean", "std", "weight", "bias", "several")
_SETTINGS = ("unit", "odds", "temperature", "top", "minimum", "alone", "keep", "in_shares")


class PackedPolicy(NamedTuple):
    """A policy's heads as plain values, in the order in which `tta_install` takes them."""

    name: str
    """The policy's name on the wire: the SHA-256 of its content."""
    settings: str
    """All that is no tensor, as JSON; experts are named by their digests."""
    tensors: bytes
    """The heads' tensors, in the safetensors format."""


def pack_policy(heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules) -> PackedPolicy:
    """Return a policy's heads as workers take them.

    Args:
        heads: The heads, whose names are those of experts.
        digests: The digest of each expert, by its name.
        rules: The rules by which the heads' scores become mixes.
    """
    tensors = {
        f"{i}.{name}": tensor.contiguous()
        for i, head in enumerate(heads)
        for name in _TENSORS
        if (tensor := getattr(head, name)) is not None
    }
    described = [
        {
            "names": [digests[name] for name in head.names],
            "only": sorted(digests[name] for name in head.only),
            "beside": digests[head.beside] if head.beside else None,
            **{name: getattr(head, name) for name in _SETTINGS},
        }
        for head in heads
    ]
    settings = json.dumps(
        {"heads": described, "grid": rules.grid, "max_experts": rules.max_experts}, sort_keys=True
    )
    data = save(tensors)
    name = hashlib.sha256(settings.encode() + data).hexdigest()
    return PackedPolicy(name, settings, data)


def unpack_policy(packed: PackedPolicy) -> tuple[tuple[Head, ...], MixRules]:
    """Return the heads, whose names are digests, and the rules that `pack_policy` wrote."""
    settings = json.loads(packed.settings)
    tensors = load(packed.tensors)
    heads = []
    for i, one in enumerate(settings["heads"]):
        parts: dict[str, Tensor] = {
            name: tensors[key].float() for name in _TENSORS if (key := f"{i}.{name}") in tensors
        }
        names = {"names": tuple(one["names"]), "only": frozenset(one["only"])}
        heads.append(Head(**{**one, **parts, **names}))
    return tuple(heads), MixRules(frozenset(), 0, settings["grid"], settings["max_experts"])
