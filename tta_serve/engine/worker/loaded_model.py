"""A model that vLLM has loaded, with everything that serving mixes adds to it."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.expert import Expert
from tta_serve.engine.options import BankOptions
from tta_serve.engine.worker.banks import Banks
from tta_serve.engine.worker.cpu.sparse_bank import narrow_factor
from tta_serve.engine.worker.inline_routing import InlineRouting
from tta_serve.engine.worker.mixture_layer import MixtureMethod
from tta_serve.engine.worker.probe_seats import ProbeSeats
from tta_serve.engine.worker.sites import (
    PlacedExpert,
    find_sites,
    place_expert,
    place_gated_expert,
)
from tta_serve.engine.worker.step_state import StepState


class LoadedModel:
    """A model of vLLM, each of whose linear layers adds the delta of each token's mix.

    Attributes:
        state: The coefficients of each slot, and what the tokens of a step use of them.
        probes: Who observes what of the tokens that pass.
        sparse: Whether banks are sparse, and those of gated tokens apart from them.
        gated: Whether requests may be gated.
    """

    def __init__(
        self,
        model: nn.Module,
        config: VllmConfig,
        device: torch.device,
        options: BankOptions,
        slots: int,
    ) -> None:
        """Take a seat at every linear layer of a model, which stays the same object.

        Args:
            model: vLLM's model, with its weights.
            config: vLLM's.
            device: Where the model is.
            options: Ours.
            slots: How many mixes a step can have.
        """
        traced = not config.model_config.enforce_eager
        captured = device.type != "cpu" and traced
        self._dtype = config.model_config.dtype
        self.sparse = device.type == "cpu" and self._dtype == torch.float32
        self.gated = options.gated

        # What experts may touch, and what the tokens of a step use of them.
        self._model = model
        self._sites = find_sites(model)
        self._gates = read_gates(Path(options.library) / LAYER_GATES) if options.trained else {}
        self.state = StepState(
            slots,
            sorted({site.place for site in self._sites.values()}),
            options.capacity.experts,
            config.scheduler_config.max_num_batched_tokens,
            device,
            captured=captured,
            upper=options.tap_layer or 0,
            gated=options.gated,
            sparse=self.sparse,
        )
        self.probes = ProbeSeats(model, self._sites, self.state, config, options.tap_layer)

        # The banks; those apart serve gated tokens, where the others are sparse.
        self._banks = Banks(self._sites, device, sparse=self.sparse, fixed=captured)
        self._apart = Banks(self._sites, device, sparse=False, fixed=False)

        # The seats, in place of what multiplies by the layers' weights.
        self._methods: dict[str, MixtureMethod] = {}
        for name, site in self._sites.items():
            method = MixtureMethod(site, self.state, self.probes.at(name), traced=traced)
            self._methods[name] = method
            site.layer.quant_method = method

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
        return self.state.coefficients[:, 0].nbytes

    def place(self, expert: Expert) -> PlacedExpert:
        """Return this rank's share of an expert.

        Raises:
            ExpertError: The expert does not fit the model.
        """
        if not self.gated:
            return place_expert(expert, self._model, self._sites, self._keep)
        return place_gated_expert(
            expert, self._model, self._sites, self._keep, apart=self.sparse, gates=self._gates
        )

    def _keep(self, factor: Tensor) -> Tensor:
        """Return a factor in the dtype to keep it in."""
        return narrow_factor(factor) if self.sparse else factor.to(self._dtype)

    def add_expert(self, digest: str, column: int, expert: PlacedExpert) -> None:
        """Let an expert be used under a column of the coefficients."""
        self._banks.add(column, expert.shares, expert.gates)
        self._apart.add(column, expert.gated, expert.gates)
        self.probes.activations.add(digest, expert.reads)

    def remove_expert(self, digest: str, column: int) -> None:
        """Forget an expert."""
        self.state.clear(column)
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
            self.state.forget_banks(self._banks.most_rows)
            for name, method in self._methods.items():
                method.bank = self._banks.by_site.get(name)
                method.apart = self._apart.by_site.get(name)
