"""The banks of the experts in use, whose cost follows what the batch needs, not what is loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapters.bank.bank import Bank, build_bank
from adapters.bank.layer_gates import LayerGate
from adapters.bank.sign_bank import SignBank, Signs
from adapters.bank.vector_bank import VectorBank, build_vector_bank
from adapters.coefficient import EMBEDDING
from adapters.expert import LowRank
from tta_serve.engine.worker.cpu.lookup_bank import LookupBank
from tta_serve.engine.worker.cpu.sparse_bank import SparseBank
from tta_serve.engine.worker.placed_expert import PlacedExpert
from tta_serve.engine.worker.sites import MixtureSite

PATIENCE = 64
"""After how many steps without use an expert may leave a bank, so that taking turns rebuilds
nothing."""


class Banks:
    """Banks for each site, over the experts in use: copies of the resident factors and vectors.

    The signs of one-bit experts are not copied.

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
        self._experts: dict[int, PlacedExpert] = {}
        self._idle: dict[int, int] = {}  # steps since its last use, of each column in the banks
        self.by_site: dict[str, Bank | SparseBank] = {}
        """The bank of each site of which an expert in use has factors."""
        self.signs: dict[str, SignBank | LookupBank] = {}
        """The bank of each site of which an expert in use has signs."""
        self.biases: dict[str, VectorBank] = {}
        """The bank of each site of which an expert in use changes a bias."""
        self.norms: dict[str, VectorBank] = {}
        """The bank of each `NormSite` that an expert in use changes."""

    def add(self, column: int, expert: PlacedExpert) -> None:
        """Keep an expert ready under its column."""
        self._experts[column] = expert

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
        kinds = self.by_site, self.signs, self.biases, self.norms
        return sum(bank.nbytes for banks in kinds for bank in banks.values())

    def _worth_dropping(self) -> bool:
        stale = sum(idle >= PATIENCE for idle in self._idle.values())
        return 2 * stale > len(self._idle)

    def _build(self, columns: Sequence[int]) -> None:
        experts = [self._experts[k] for k in columns]
        self.by_site.clear()
        self.signs.clear()
        for name, site in self._sites.items():
            absent = (None,) * len(site.weights)
            weights, gates, signs = (
                [*zip(*(part.get(name, absent) for part in parts), strict=True)]
                for parts in zip(*((e.shares, e.gates, e.signs) for e in experts), strict=True)
            )
            bank = self._bank(site, weights, gates, columns)
            if bank is not None:
                self.by_site[name] = bank
            if any(map(any, signs)):
                self.signs[name] = self._sign_bank(site, signs, columns)
        self.biases = self._vector_banks(lambda e: e.biases, columns)
        self.norms = self._vector_banks(lambda e: e.norms, columns)

    def _sign_bank(
        self,
        site: MixtureSite,
        signs: Sequence[Sequence[Signs | None]],
        columns: Sequence[int],
    ) -> SignBank | LookupBank:
        """Return a layer's bank over the one-bit experts among these, which touch it."""
        used = [i for i, parts in enumerate(zip(*signs, strict=True)) if any(parts)]
        weights = tuple(tuple(part[i] for i in used) for part in signs)
        experts = tuple(columns[i] for i in used)
        if self._sparse and site.place != EMBEDDING:
            return LookupBank(weights, site.local_sizes, site.local_inputs, experts)
        return SignBank(weights, site.local_sizes, experts)

    def _vector_banks(
        self, of: Callable[[PlacedExpert], Mapping[str, Tensor]], columns: Sequence[int]
    ) -> dict[str, VectorBank]:
        vectors = [of(self._experts[k]) for k in columns]
        names = dict.fromkeys(name for own in vectors for name in own)
        banks = {
            name: build_vector_bank([own.get(name) for own in vectors], columns, self._device)
            for name in names
        }
        return {name: bank for name, bank in banks.items() if bank is not None}

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
