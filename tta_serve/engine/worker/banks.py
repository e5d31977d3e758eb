"""The banks of the experts in use, whose cost follows what the batch needs, not what is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from adapters.bank.bank import Bank, build_bank
from adapters.bank.layer_gates import LayerGate
from adapters.coefficient import EMBEDDING
from adapters.expert import LowRank
from tta_serve.engine.worker.cpu.sparse_bank import SparseBank
from tta_serve.engine.worker.placed_expert import Shares, SiteGates
from tta_serve.engine.worker.sites import MixtureSite

PATIENCE = 64
"""After how many steps without use an expert may leave a bank, so that taking turns rebuilds
nothing."""


class Banks:
    """One bank for each site, over the experts in use, each a copy of the resident factors.

    Experts in use are columns of the coefficient table. An expert that a step needs and the banks
    lack is added before the step; those that were not needed for PATIENCE steps are dropped once
    they are more than half of the rows.
    """

    def __init__(
        self, sites: Mapping[str, MixtureSite], device: torch.device, *, sparse: bool, fixed: bool
    ) -> None:
        """Start without experts.

        Args:
            sites: The layers that have a bank, by name.
            device: Where banks are kept.
            sparse: Whether banks of layers that read numbers are `SparseBank`s, for the CPU.
            fixed: Whether banks always hold all experts, at the same addresses, as a captured CUDA
                graph wants it.
        """
        self._sites = sites
        self._device = device
        self._sparse = sparse
        self._fixed = fixed
        self._experts: dict[int, tuple[Shares, SiteGates]] = {}
        self._idle: dict[int, int] = {}  # steps since its last use, of each column in the banks
        self.by_site: dict[str, Bank | SparseBank] = {}
        """The bank of each site that an expert in use touches."""

    def add(self, column: int, expert: Shares, gates: SiteGates) -> None:
        """Keep an expert ready under its column."""
        self._experts[column] = expert, gates

    def remove(self, column: int) -> None:
        """Forget an expert.

        Until the banks are built anew its rows stay in them, so its coefficients must be zero.
        """
        del self._experts[column]
        self._idle.pop(column, None)

    def use(self, columns: Iterable[int]) -> bool:
        """Make the banks hold at least these columns. Returns whether they were built anew."""
        # Count how long each expert in the banks has been idle.
        needed = set(self._experts) if self._fixed else set(columns)
        if not needed:
            return False
        self._idle = {k: 0 if k in needed else idle + 1 for k, idle in self._idle.items()}
        missing = needed - self._idle.keys()
        if not missing and not self._worth_dropping():
            return False

        # Build the banks anew, without those that were idle for long.
        kept = needed | {k for k, idle in self._idle.items() if idle < PATIENCE}
        self._idle = {k: self._idle.get(k, 0) for k in sorted(kept)}
        self._build(list(self._idle))
        return True

    @property
    def most_rows(self) -> int:
        """The most rows that a sparse bank has."""
        banks = self.by_site.values()
        return max((bank.rows for bank in banks if isinstance(bank, SparseBank)), default=0)

    @property
    def nbytes(self) -> int:
        """The bytes of all banks."""
        return sum(bank.nbytes for bank in self.by_site.values())

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
            bank = self._bank(site, weights, gates, columns)
            if bank is None:
                self.by_site.pop(name, None)
            else:
                self.by_site[name] = bank

    def _bank(
        self,
        site: MixtureSite,
        weights: Sequence[Sequence[LowRank | None]],
        gates: Sequence[Sequence[LayerGate | None]],
        columns: Sequence[int],
    ) -> Bank | SparseBank | None:
        """Return a layer's bank over these experts, None if none of them touches the layer."""
        if self._sparse and site.place != EMBEDDING:
            touched = any(any(factors) for factors in weights)
            return SparseBank(weights, site.local_sizes, columns) if touched else None
        bank = build_bank(weights, site.local_sizes, gates)
        if bank is None:
            return None
        if site.place == EMBEDDING:
            # What is read of it are columns.
            bank = replace(bank, a=bank.a.t().contiguous().t())
        return replace(bank.to(self._device), expert=tuple(columns[k] for k in bank.expert))
