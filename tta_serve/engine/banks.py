"""The banks of the experts in use: their cost follows what the batch needs, not what the library holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from adapters.bank import Bank, build
from adapters.expert import LowRank
from adapters.layer_gates import LayerGate
from tta_serve.engine.attach import Shares, Site, SiteGates
from tta_serve.engine.sparse import SparseBank

# A bank that holds more than it needs is rebuilt after this many steps of it, so that taking turns rebuilds nothing.
PATIENCE = 64


class Banks:
    """One bank for each site, over the experts in use, each a copy of the resident factors.

    Experts in use are columns of the coefficient table. An expert that a step needs and the banks lack is added before the
    step; those that were not needed for PATIENCE steps are dropped once they are more than half of the rows.
    """

    def __init__(self, sites: Mapping[str, Site], device: torch.device, *, sparse: bool, fixed: bool) -> None:
        """fixed: always hold all experts, at the same addresses, as a captured CUDA graph wants it."""
        self._sites, self._device, self._sparse, self._fixed = sites, device, sparse, fixed
        self._experts: dict[int, tuple[Shares, SiteGates]] = {}
        self._idle: dict[int, int] = {}  # steps since its last use, of each column in the banks
        self.by_site: dict[str, Bank | SparseBank] = {}

    def add(self, column: int, expert: Shares, gates: SiteGates) -> None:
        """Keep an expert ready under its column."""
        self._experts[column] = expert, gates

    def remove(self, column: int) -> None:
        """Forget an expert. Until the banks are built anew its rows stay in them, so its coefficients must be zero."""
        del self._experts[column]
        self._idle.pop(column, None)

    def use(self, columns: Iterable[int]) -> bool:
        """Make the banks hold at least these columns. Returns whether they were built anew."""
        needed = set(self._experts) if self._fixed else set(columns)
        if not needed:
            return False
        self._idle = {k: 0 if k in needed else idle + 1 for k, idle in self._idle.items()}
        missing = needed - self._idle.keys()
        if not missing and not self._worth_dropping():
            return False
        kept = needed | {k for k, idle in self._idle.items() if idle < PATIENCE}
        self._idle = {k: self._idle.get(k, 0) for k in sorted(kept)}
        self._build(list(self._idle))
        return True

    @property
    def most_rows(self) -> int:
        """Of a sparse bank."""
        return max((bank.rows for bank in self.by_site.values() if isinstance(bank, SparseBank)), default=0)

    def _worth_dropping(self) -> bool:
        stale = sum(idle >= PATIENCE for idle in self._idle.values())
        return 2 * stale > len(self._idle)

    def _build(self, columns: Sequence[int]) -> None:
        for name, site in self._sites.items():
            absent = (None,) * len(site.weights)
            weights, gates = (
                [*zip(*(part.get(name, absent) for part in parts), strict=True)]
                for parts in zip(*(self._experts[k] for k in columns), strict=True)
            )
            bank = self._bank(weights, gates, site.local_sizes, columns)
            if bank is None:
                self.by_site.pop(name, None)
            else:
                self.by_site[name] = bank

    def _bank(
        self,
        weights: Sequence[Sequence[LowRank | None]],
        gates: Sequence[Sequence[LayerGate | None]],
        outs: Sequence[int],
        columns: Sequence[int],
    ) -> Bank | SparseBank | None:
        if self._sparse:
            return SparseBank(weights, outs, columns) if any(any(factors) for factors in weights) else None
        bank = build(weights, outs, gates)
        return bank and replace(bank.to(self._device), expert=tuple(columns[k] for k in bank.expert))
