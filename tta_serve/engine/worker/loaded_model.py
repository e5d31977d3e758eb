"""A model that vLLM has loaded, with everything that serving mixes adds to it."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.bank.sign_bank import pack_signs
from adapters.coefficient import EMBEDDING, HEAD, Coefficient, Place
from adapters.errors import ExpertError
from adapters.expert import Expert
from adapters.library.integrity import SealedDeltas
from tta_serve.engine.options import BankOptions
from tta_serve.engine.wire import DenseKey
from tta_serve.engine.worker.banks import Banks
from tta_serve.engine.worker.coefficient_table import CoefficientTable
from tta_serve.engine.worker.cpu.lookup_bank import pack_for_lookup
from tta_serve.engine.worker.cpu.sparse_bank import narrow_factor
from tta_serve.engine.worker.dense.dense_weights import DenseWeights, Folded
from tta_serve.engine.worker.dense.folding import Folding, SlotMix
from tta_serve.engine.worker.inline_routing import InlineRouting
from tta_serve.engine.worker.logits import HeadSeat, LogitRows
from tta_serve.engine.worker.mixture_layer import EmbeddingSeat, MixtureMethod, MixtureSeat
from tta_serve.engine.worker.norm_seat import NormSeat
from tta_serve.engine.worker.norm_sites import find_norm_sites
from tta_serve.engine.worker.placed_expert import PlacedExpert, place_expert, place_gated_expert
from tta_serve.engine.worker.placed_one_bit import OneBitSites
from tta_serve.engine.worker.probe_seats import ProbeSeats
from tta_serve.engine.worker.probes.comparison import ComparedMix
from tta_serve.engine.worker.sites import MixtureSite, find_sites
from tta_serve.engine.worker.step_state import StepState


class LoadedModel:
    """A model of vLLM, each of whose layers adds the delta of each token's mix.

    Attributes:
        table: The coefficients of each slot.
        state: What the tokens of a step use of them.
        logits: Which slots logits are of; None if the output head takes no experts.
        probes: Who observes what of the tokens that pass.
        dense: The dense experts, and which mix of them is in the weights; None if the engine
            serves none.
        sparse: Whether banks are sparse, and those of gated tokens apart from them.
        gated: Whether requests may be gated.
    """

    def __init__(  # noqa: PLR0913 - one part each
        self,
        model: Any,
        config: VllmConfig,
        device: torch.device,
        options: BankOptions,
        slots: int,
        find_column: Callable[[str], int | None],
    ) -> None:
        """Take a seat at every site of a model, which stays the same object.

        Args:
            model: vLLM's model, with its weights.
            config: vLLM's.
            device: Where the model is.
            options: Ours.
            slots: How many rows the table of coefficients has, beside the base's.
            find_column: Gives the column of an expert by its digest, None if it is not there.
        """
        traced = not config.model_config.enforce_eager
        captured = device.type != "cpu" and traced
        dtypes = config.model_config.dtype, config.model_config.head_dtype
        self._device = device
        self._dtype = dtypes[0]
        self._head_dtype = torch.promote_types(*dtypes)
        self.sparse = device.type == "cpu" and self._dtype == torch.float32
        self.gated = options.gated
        self._embeds_elsewhere = config.model_config.enable_prompt_embeds

        # What experts may touch, and what the tokens of a step use of them.
        self._model = model
        self.dense = DenseWeights(model, device, options.dense) if options.dense else None
        self._find_column = find_column
        self._sites = find_sites(model, config.model_config)
        norms = find_norm_sites(model, config.model_config, options.tap_layer)
        self._one_bit = OneBitSites(model, self._sites, norms, self._pack)
        self._gates = read_gates(Path(options.library) / LAYER_GATES) if options.trained else {}
        places = {s.place for s in self._sites.values()} | {n.place for n in norms.values()}
        self.table = _make_table(places, slots, device, options)
        self.state = StepState(
            self.table,
            config.scheduler_config.max_num_batched_tokens,
            captured=captured,
            gated=options.gated,
            sparse=self.sparse,
        )
        self.logits: LogitRows | None = None
        if any(site.place == HEAD for site in self._sites.values()):
            self.logits = LogitRows(model, self.table, self.state, gated=options.gated)
        self.probes = self._seat_probes(config, options)
        self._folding = self._make_folding(device, options)

        # The banks; those apart serve gated tokens, where the others are sparse.
        self._banks = Banks(self._sites, device, sparse=self.sparse, fixed=captured)
        self._apart = Banks(self._sites, device, sparse=False, fixed=False)
        self._seats = {
            name: self._take_seat(site, traced=traced) for name, site in self._sites.items()
        }
        self._norm_seats = {
            name: NormSeat(norm, self.state, traced=traced) for name, norm in norms.items()
        }

    def _seat_probes(self, config: VllmConfig, options: BankOptions) -> ProbeSeats:
        return ProbeSeats(
            self._model,
            self._sites,
            self.state,
            self._make_logits,
            config,
            options.tap_layer,
            self._find_column,
        )

    def _take_seat(self, site: MixtureSite, *, traced: bool) -> MixtureSeat:
        if site.place == EMBEDDING:
            return EmbeddingSeat(site, self.state, traced=traced)
        if site.place == HEAD:
            assert self.logits is not None
            return HeadSeat(site, self.logits, self._model, self._head_dtype)
        return MixtureMethod(site, self.state, self.probes.at(site.name), traced=traced)

    def _make_folding(self, device: torch.device, options: BankOptions) -> Folding | None:
        """Return what folds low-rank mixes into the weights, None if nothing is to."""
        if self.dense is None or options.dense is None or not options.dense.fold:
            return None
        if device.type != "cpu":
            raise ValueError("dense.fold is for CPUs: it goes by the host's clock")
        self.state.timed = True
        return Folding(self.dense, self._sites)

    @property
    def inline(self) -> InlineRouting | None:
        """Routing inside the pass, None if the engine reads no features."""
        return self.probes.inline

    @property
    def bank_bytes(self) -> int:
        """The bytes of the banks of the experts in use."""
        return self._banks.nbytes + self._apart.nbytes

    @property
    def slot_bytes(self) -> int:
        """The bytes of one slot."""
        return self.table.coefficients[:, 0].nbytes

    def place(self, expert: Expert) -> PlacedExpert:
        """Return this rank's share of an expert.

        Raises:
            ExpertError: The expert does not fit the model.
        """
        if self.gated:
            placed = place_gated_expert(
                expert, self._model, self._sites, self._keep, apart=self.sparse, gates=self._gates
            )
        else:
            placed = place_expert(expert, self._model, self._sites, self._keep)
        self._check_embedding(expert.name, placed.shares)
        return placed

    def place_one_bit(
        self, name: str, deltas: SealedDeltas, unserved: Collection[str]
    ) -> PlacedExpert:
        """Return this rank's share of a one-bit expert, as `OneBitSites.place` does.

        Raises:
            ExpertError: The expert does not fit the model.
        """
        placed = self._one_bit.place(name, deltas, unserved)
        self._check_embedding(name, placed.signs)
        return placed

    def _check_embedding(self, expert: str, touched: Iterable[str]) -> None:
        """Raise ExpertError if an expert changes an embedding that is looked up elsewhere."""
        if self._embeds_elsewhere and any(self._sites[name].place == EMBEDDING for name in touched):
            raise ExpertError(
                f"expert {expert!r} changes the token embedding, which an engine with"
                " enable_prompt_embeds looks up for some tokens of a step only; start without it"
            )

    def _pack(self, site: MixtureSite, plus: Tensor) -> Tensor:
        """Return signs as the bank of a site reads them."""
        if self.sparse and site.place != EMBEDDING:
            return pack_for_lookup(plus)
        return pack_signs(plus).to(self._device)

    def _keep(self, site: MixtureSite, factor: Tensor) -> Tensor:
        """Return a factor of a site in the dtype to keep it in."""
        if site.place == EMBEDDING:
            return factor.to(self._dtype)
        if self.sparse:
            return narrow_factor(factor)
        return factor.to(self._head_dtype if site.place == HEAD else self._dtype)

    def add_expert(self, digest: str, column: int, expert: PlacedExpert) -> None:
        """Let an expert be used under a column of the coefficients."""
        self._banks.add(column, expert)
        self._apart.add(column, PlacedExpert(expert.gated, {}, gates=expert.gates))
        if expert.rank:
            self.probes.activations.add(digest, expert.reads)
            if self._folding is not None:
                self._folding.add(digest, expert.shares)

    def remove_expert(self, digest: str, column: int) -> None:
        """Forget an expert."""
        self.table.clear(column)
        self._banks.remove(column)
        self._apart.remove(column)
        if self._folding is not None:
            self._folding.remove(digest)
        self.probes.activations.remove(digest)

    def use(self, columns: Iterable[int], apart: Iterable[int]) -> None:
        """Make the banks hold the experts that a step needs.

        Args:
            columns: The experts' columns.
            apart: The columns of the experts of tokens that are apart.
        """
        if any([self._banks.use(columns), self._apart.use(apart)]):
            self._change_banks()

    def decide_fold(self, mix: SlotMix | None) -> Folded | None:
        """Return the low-rank mix that is to be in the weights in a step, None for none.

        Args:
            mix: What all of the step's tokens use, None if they use several mixes, or what cannot
                be in the weights.
        """
        if self._folding is None:
            return None
        spent, self.state.banks_s = self.state.banks_s, 0.0
        return self._folding.decide(mix, spent)

    def use_dense(self, key: DenseKey, folded: Folded | None = None) -> None:
        """Make the weights those of a dense mix, and of a low-rank one that is folded."""
        if self.dense is not None:
            self.dense.use(key, folded)

    def _change_banks(self) -> None:
        """Hand the banks, which were built anew, to the seats."""
        most_rows = self._banks.most_rows
        self.state.forget_banks(most_rows)
        for name, seat in self._seats.items():
            seat.bank = self._banks.by_site.get(name)
            seat.apart = self._apart.by_site.get(name)
            seat.signs = self._banks.signs.get(name)
            seat.biases = self._banks.biases.get(name)
        for name, norm in self._norm_seats.items():
            norm.bank = self._banks.norms.get(name)
        if self.logits is not None:
            heads = [seat for seat in self._seats.values() if isinstance(seat, HeadSeat)]
            self.logits.change_banks(most_rows, needed=not all(head.idle for head in heads))

    def _make_logits(self, states: Tensor, mixes: Sequence[ComparedMix]) -> Tensor | None:
        """Return logits of states that passed before, as `MakeLogits` does."""
        keys = dict.fromkeys(mix.dense for mix in mixes)
        needed = {digest for key in keys for digest, _ in key}
        if self.dense is not None and any(digest not in self.dense for digest in needed):
            return None  # it has gone meanwhile
        by_mix = list(states.chunk(len(mixes)))
        for key in keys:
            mine = [i for i, mix in enumerate(mixes) if mix.dense == key]
            self.use_dense(key)
            logits = self._make_slot_logits(
                torch.cat([by_mix[i] for i in mine]), [mixes[i].mix for i in mine]
            )
            if logits is None:
                return None
            for i, part in zip(mine, logits.chunk(len(mine)), strict=True):
                by_mix[i] = part
        return torch.cat(by_mix)

    def _make_slot_logits(
        self, states: Tensor, mixes: Sequence[Mapping[str, Coefficient]]
    ) -> Tensor | None:
        """Return logits by the weights as they are, and by what slots add to the head."""
        logits: Tensor | None
        if self.logits is None:
            logits = self._model.compute_logits(states)
            return logits

        # The banks must hold the experts, which may have gone meanwhile.
        columns = {digest: self._find_column(digest) for mix in mixes for digest in mix}
        known = {digest: column for digest, column in columns.items() if column is not None}
        if len(known) < len(columns):
            return None
        self.use(known.values(), ())

        with self.logits.of_mixes([{known[d]: c for d, c in mix.items()} for mix in mixes]):
            logits = self._model.compute_logits(states)
        return logits


def _make_table(
    places: Iterable[Place], slots: int, device: torch.device, options: BankOptions
) -> CoefficientTable:
    upper = options.tap_layer or 0
    return CoefficientTable(slots, sorted(places), options.capacity.experts, device, upper=upper)
