"""A model that vLLM has loaded, with everything that serving mixes adds to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.coefficient import EMBEDDING, HEAD, Coefficient
from adapters.errors import ExpertError
from adapters.expert import Expert
from tta_serve.engine.options import BankOptions
from tta_serve.engine.worker.banks import Banks
from tta_serve.engine.worker.coefficient_table import CoefficientTable
from tta_serve.engine.worker.cpu.sparse_bank import narrow_factor
from tta_serve.engine.worker.inline_routing import InlineRouting
from tta_serve.engine.worker.logits import HeadSeat, LogitRows
from tta_serve.engine.worker.mixture_layer import EmbeddingSeat, MixtureMethod, MixtureSeat
from tta_serve.engine.worker.placed_expert import PlacedExpert, place_expert, place_gated_expert
from tta_serve.engine.worker.probe_seats import ProbeSeats
from tta_serve.engine.worker.sites import MixtureSite, find_sites
from tta_serve.engine.worker.step_state import StepState


class LoadedModel:
    """A model of vLLM, each of whose layers adds the delta of each token's mix.

    Attributes:
        table: The coefficients of each slot.
        state: What the tokens of a step use of them.
        logits: Which slots logits are of; None if the output head takes no experts.
        probes: Who observes what of the tokens that pass.
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
            slots: How many mixes a step can have.
            find_column: Gives the column of an expert by its digest, None if it is not there.
        """
        traced = not config.model_config.enforce_eager
        captured = device.type != "cpu" and traced
        dtypes = config.model_config.dtype, config.model_config.head_dtype
        self._dtype = dtypes[0]
        self._head_dtype = torch.promote_types(*dtypes)
        self.sparse = device.type == "cpu" and self._dtype == torch.float32
        self.gated = options.gated
        self._embeds_elsewhere = config.model_config.enable_prompt_embeds

        # What experts may touch, and what the tokens of a step use of them.
        self._model = model
        self._find_column = find_column
        self._sites = find_sites(model, config.model_config)
        self._gates = read_gates(Path(options.library) / LAYER_GATES) if options.trained else {}
        self.table = CoefficientTable(
            slots,
            sorted({site.place for site in self._sites.values()}),
            options.capacity.experts,
            device,
            upper=options.tap_layer or 0,
        )
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
        self.probes = ProbeSeats(
            model, self._sites, self.state, self._make_logits, config, options.tap_layer
        )

        # The banks; those apart serve gated tokens, where the others are sparse.
        self._banks = Banks(self._sites, device, sparse=self.sparse, fixed=captured)
        self._apart = Banks(self._sites, device, sparse=False, fixed=False)
        self._seats = {
            name: self._take_seat(site, traced=traced) for name, site in self._sites.items()
        }

    def _take_seat(self, site: MixtureSite, *, traced: bool) -> MixtureSeat:
        if site.place == EMBEDDING:
            return EmbeddingSeat(site, self.state, traced=traced)
        if site.place == HEAD:
            assert self.logits is not None
            return HeadSeat(site, self.logits, self._model, self._head_dtype)
        return MixtureMethod(site, self.state, self.probes.at(site.name), traced=traced)

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
        if self._embeds_elsewhere and any(
            self._sites[name].place == EMBEDDING for name in placed.shares
        ):
            raise ExpertError(
                f"expert {expert.name!r} changes the token embedding, which an engine with"
                " enable_prompt_embeds looks up for some tokens of a step only; start without it"
            )
        return placed

    def _keep(self, site: MixtureSite, factor: Tensor) -> Tensor:
        """Return a factor of a site in the dtype to keep it in."""
        if site.place == EMBEDDING:
            return factor.to(self._dtype)
        if self.sparse:
            return narrow_factor(factor)
        return factor.to(self._head_dtype if site.place == HEAD else self._dtype)

    def add_expert(self, digest: str, column: int, expert: PlacedExpert) -> None:
        """Let an expert be used under a column of the coefficients."""
        self._banks.add(column, expert.shares, expert.gates)
        self._apart.add(column, expert.gated, expert.gates)
        self.probes.activations.add(digest, expert.reads)

    def remove_expert(self, digest: str, column: int) -> None:
        """Forget an expert."""
        self.table.clear(column)
        self._banks.remove(column)
        self._apart.remove(column)
        self.probes.activations.remove(digest)

    def use(self, columns: Iterable[int], apart: Iterable[int]) -> None:
        """Make the banks hold the experts that a step needs.

        Args:
            columns: The experts' columns.
            apart: The columns of the experts of tokens that are apart.
        """
        if any([self._banks.use(columns), self._apart.use(apart)]):
            self._change_banks()

    def _change_banks(self) -> None:
        """Hand the banks, which were built anew, to the seats."""
        most_rows = self._banks.most_rows
        self.state.forget_banks(most_rows)
        for name, seat in self._seats.items():
            seat.bank = self._banks.by_site.get(name)
            seat.apart = self._apart.by_site.get(name)
        if self.logits is not None:
            heads = [seat for seat in self._seats.values() if isinstance(seat, HeadSeat)]
            self.logits.change_banks(most_rows, needed=not all(head.idle for head in heads))

    def _make_logits(
        self, states: Tensor, mixes: Sequence[Mapping[str, Coefficient]]
    ) -> Tensor | None:
        """Return logits of states that passed before, as `MakeLogits` does."""
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
