"""The policies that decide inside a pass, as a worker holds them: matrices in fixed places."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from adapters.mix import MixRules
from router.errors import RouterError
from router.scoring.heads import Head, Heads, make_empty_row, make_row
from tta_serve.engine.options import MOST_POLICIES_WITHIN
from tta_serve.engine.policy_wire import PackedPolicy, unpack_policy

HEADS = 2
"""How many heads a policy has at most."""


@dataclass(frozen=True)
class WorkerPolicy:
    """A policy that a worker can decide by."""

    heads: tuple[Head, ...]
    """Its heads, whose names are the digests of experts."""
    rules: MixRules
    """The rules by which the heads' scores become mixes."""
    rows: tuple[int, ...]
    """Its HEADS rows of the table; the last of them are those of its heads."""

    @property
    def experts(self) -> set[str]:
        """The digests of all experts that the policy may choose, or has on beside those."""
        chosen = {digest for head in self.heads for digest in head.names}
        return chosen | {head.beside for head in self.heads if head.beside}


class HeadTable:
    """The policies that were installed last, each of at most HEADS heads.

    Attributes:
        heads: A row for each head; row 0 is that of no policy.
        columns: [rows, K], the coefficient table's column of each of a head's experts.
        beside: [rows, K], by column, the coefficients that are on beside what a head chooses.
        alone: [rows], bool, whether they are on where it chooses nothing.
    """

    def __init__(self, width: int, columns: int, device: torch.device) -> None:
        """Start without policies.

        Args:
            width: The features that a head reads.
            columns: K, the columns of the coefficient table.
            device: Where the table is kept.
        """
        self._nothing = make_empty_row(width, columns)
        self._capacity = columns
        rows = 1 + HEADS * MOST_POLICIES_WITHIN
        self.heads = Heads(
            *(part.repeat(rows, *[1] * (part.dim() - 1)).to(device) for part in self._nothing)
        )
        self.columns = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.beside = torch.zeros(rows, columns, dtype=torch.float32, device=device)
        self.alone = torch.zeros(rows, dtype=torch.bool, device=device)
        self._free = list(range(MOST_POLICIES_WITHIN))
        self._policies: OrderedDict[str, WorkerPolicy] = OrderedDict()

    def install(self, packed: PackedPolicy, column: Callable[[str], int | None]) -> None:
        """Keep a policy; where there is no room, the one longest not installed goes.

        Args:
            packed: The policy.
            column: Returns the column of an expert, by its digest; None if it is not there.

        Raises:
            RouterError: The policy has more experts than the coefficient table, or reads features
                of another width.
        """
        # Check that it fits.
        heads, rules = unpack_policy(packed)
        for head in heads:
            if len(head.names) > self._capacity:
                raise RouterError(
                    f"{len(head.names)} experts to choose from; library.capacity.experts is"
                    f" {self._capacity}"
                )
            if head.mean.shape != self._nothing.mean.shape[1:]:
                raise RouterError(
                    f"the policy reads {len(head.mean)} features, the base has"
                    f" {self._nothing.mean.shape[1]}"
                )
        if packed.name in self._policies:
            self._policies.move_to_end(packed.name)
            return

        # Find it a place, and write its rows there.
        if self._free:
            place = self._free.pop()
        else:
            _, oldest = self._policies.popitem(last=False)
            place = oldest.rows[0] // HEADS
        rows = tuple(range(1 + HEADS * place, 1 + HEADS * (place + 1)))
        policy = self._policies[packed.name] = WorkerPolicy(heads, rules, rows)
        self._write(policy, column)

    def __contains__(self, policy: str | None) -> bool:
        return policy in self._policies

    def __getitem__(self, policy: str) -> WorkerPolicy:
        return self._policies[policy]

    def remap(self, column: Callable[[str], int | None]) -> None:
        """Write all rows anew, since experts have come or gone."""
        for policy in self._policies.values():
            self._write(policy, column)

    def _write(self, policy: WorkerPolicy, column: Callable[[str], int | None]) -> None:
        """Write the rows of a policy, for the experts that are there."""
        self._set(policy.rows[0], self._nothing)
        for place, head in zip(policy.rows[-len(policy.heads) :], policy.heads, strict=True):
            there = {digest: k for digest in head.names if (k := column(digest)) is not None}
            beside = column(head.beside) if head.beside else None
            if head.beside and beside is None:
                there = {}  # without what all of them need, none of them is chosen
            self._set(place, make_row(head, there, self._capacity, policy.rules))
            self.beside[place] = 0
            if beside is not None:
                self.beside[place, beside] = 1
            self.alone[place] = head.alone
            columns = torch.tensor(
                [there.get(digest, 0) for digest in head.names], dtype=torch.long
            )
            self.columns[place, : len(head.names)].copy_(columns)

    def _set(self, place: int, values: Heads) -> None:
        for whole, part in zip(self.heads, values, strict=True):
            whole[place : place + 1].copy_(part)
