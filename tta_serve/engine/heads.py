"""The policies that decide inside a pass, as a worker holds them: small matrices at fixed addresses."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from adapters.mix import MixRules
from router.inline import Head, Heads, nothing, row
from router.policy import RouterError

POLICIES = 16
HEADS = 2  # of a policy


def pack(heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules) -> tuple[str, str, bytes]:
    """A policy's heads as workers take them: their id, which is their content's, their settings as JSON, their tensors.

    digests: of the experts
    """
    tensors = {f"{i}.{name}": getattr(head, name).contiguous() for i, head in enumerate(heads) for name in _TENSORS}
    said = [
        {
            "names": [digests[name] for name in head.names],
            "only": sorted(digests[name] for name in head.only),
            **{name: getattr(head, name) for name in _SETTINGS},
        }
        for head in heads
    ]
    settings = json.dumps({"heads": said, "grid": rules.grid, "max_experts": rules.max_experts}, sort_keys=True)
    data = save(tensors)
    return hashlib.sha256(settings.encode() + data).hexdigest(), settings, data


_TENSORS = ("mean", "std", "weight", "bias")
_SETTINGS = ("unit", "odds", "temperature", "top", "minimum")


@dataclass(frozen=True)
class Installed:
    """A policy of the table. heads: with digests as names   rows: of the table, the heads' own are the last of them"""

    heads: tuple[Head, ...]
    rules: MixRules
    rows: tuple[int, ...]

    @property
    def experts(self) -> set[str]:
        """The digests of all experts that it may choose."""
        return {digest for head in self.heads for digest in head.names}


class HeadTable:
    """The latest policies, each of at most two heads.

    heads: a row for each; row 0 is that of no policy   columns: [rows, K], the coefficient table's column of a head's experts
    """

    def __init__(self, width: int, columns: int, device: torch.device) -> None:
        self._nothing, self._capacity = nothing(width, columns), columns
        rows = 1 + HEADS * POLICIES
        self.heads = Heads(*(part.repeat(rows, *[1] * (part.dim() - 1)).to(device) for part in self._nothing))
        self.columns = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self._free = list(range(POLICIES))
        self._policies: OrderedDict[str, Installed] = OrderedDict()

    def install(self, policy: str, settings: str, data: bytes, column: Callable[[str], int | None]) -> None:
        """Keep a policy as `pack` made it; the one longest not installed goes. column: of an expert, None if it is not there

        Raises RouterError if it has more experts than the coefficient table, or reads features of another width.
        """
        heads, rules = _unpacked(settings, data)
        for head in heads:
            if len(head.names) > self._capacity:
                raise RouterError(f"{len(head.names)} experts to choose from; library.capacity.experts is {self._capacity}")
            if head.mean.shape != self._nothing.mean.shape[1:]:
                raise RouterError(f"the policy reads {len(head.mean)} features, the base has {self._nothing.mean.shape[1]}")
        if policy in self._policies:
            self._policies.move_to_end(policy)
            return
        place = self._free.pop() if self._free else self._policies.popitem(last=False)[1].rows[0] // HEADS
        self._policies[policy] = Installed(heads, rules, tuple(range(1 + HEADS * place, 1 + HEADS * (place + 1))))
        self._write(self._policies[policy], column)

    def __contains__(self, policy: str | None) -> bool:
        return policy in self._policies

    def __getitem__(self, policy: str) -> Installed:
        return self._policies[policy]

    def remap(self, column: Callable[[str], int | None]) -> None:
        """Experts have come or gone."""
        for policy in self._policies.values():
            self._write(policy, column)

    def _write(self, policy: Installed, column: Callable[[str], int | None]) -> None:
        self._set(policy.rows[0], self._nothing)
        for place, head in zip(policy.rows[-len(policy.heads) :], policy.heads, strict=True):
            there = {digest: k for digest in head.names if (k := column(digest)) is not None}
            self._set(place, row(head, there, self._capacity, policy.rules))
            columns = torch.tensor([there.get(digest, 0) for digest in head.names], dtype=torch.long)
            self.columns[place, : len(head.names)].copy_(columns)

    def _set(self, place: int, values: Heads) -> None:
        for whole, part in zip(self.heads, values, strict=True):
            whole[place : place + 1].copy_(part)


def _unpacked(settings: str, data: bytes) -> tuple[tuple[Head, ...], MixRules]:
    said, tensors = json.loads(settings), load(data)
    heads = []
    for i, one in enumerate(said["heads"]):
        parts: dict[str, Tensor] = {name: tensors[f"{i}.{name}"].float() for name in _TENSORS}
        heads.append(Head(**{**one, **parts, "names": tuple(one["names"]), "only": frozenset(one["only"])}))
    return tuple(heads), MixRules(frozenset(), 0, said["grid"], said["max_experts"])
