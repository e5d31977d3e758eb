"""The observers of a worker, one for each kind of probe, and where in the model they sit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest

from tta_serve.engine import wire
from tta_serve.engine.worker.inline_routing import InlineRouting
from tta_serve.engine.worker.probes.activations import ActivationObserver
from tta_serve.engine.worker.probes.comparison import ComparisonObserver, MakeLogits
from tta_serve.engine.worker.probes.observer import InputObserver, ProbeObserver, RunningProbe
from tta_serve.engine.worker.sites import MixtureSite, find_first_sites, find_tapped_site
from tta_serve.engine.worker.slots import SlotTable
from tta_serve.engine.worker.step_state import StepState


class ProbeSeats:
    """Who observes what of the tokens that pass.

    compare       at the model's output
    activations   at the first linear layer of every attention and MLP
    features      by `inline`, at the first linear layer of an early decoder layer

    Attributes:
        activations: The observer of activations, which has to know the resident experts.
        inline: Routing inside the pass, None if the engine reads no features.
    """

    def __init__(  # noqa: PLR0913 - one part each
        self,
        model: Any,
        sites: Mapping[str, MixtureSite],
        state: StepState,
        logits: MakeLogits,
        config: VllmConfig,
        tap_layer: int | None,
        find_column: Callable[[str], int | None],
    ) -> None:
        """Seat the observers.

        Where CUDA graphs are captured only features are observed: a replayed graph passes by the
        others.

        Args:
            model: vLLM's model.
            sites: The model's sites, by name.
            state: What the tokens of a step use.
            logits: Makes logits of states.
            config: vLLM's.
            tap_layer: The decoder layer at which features are read, None for nowhere.
            find_column: Gives the column of an expert by its digest, None if it is not there.
        """
        self._state = state
        names = {place: site.name for place, site in find_first_sites(sites).items()}
        self.activations = ActivationObserver(names, state.token_slots.device)
        self.inline: InlineRouting | None = None
        self._seats: dict[str, tuple[InputObserver, ...]] = {}  # by site
        self._observers: dict[wire.ProbeKind, ProbeObserver[Any]] = {}

        if not state.captured:
            vocabulary = config.model_config.get_vocab_size()
            comparison = ComparisonObserver(logits, vocabulary)
            self._observers = {"compare": comparison, "activations": self.activations}
            self._seats = dict.fromkeys(names.values(), (self.activations,))
            model.register_forward_hook(
                lambda _module, _args, states: self._observe_output(comparison, states)
            )
        if tap_layer is not None:
            name = find_tapped_site(sites, tap_layer)
            limits = config.scheduler_config
            self.inline = InlineRouting(
                state,
                width=sites[name].inputs,
                capacity=limits.max_num_seqs,
                max_tokens=limits.max_num_batched_tokens,
                find_column=find_column,
            )
            self._seats[name] = self.inline, *self._seats.get(name, ())

    @property
    def kinds(self) -> list[wire.ProbeKind]:
        """The kinds of probes that are observed."""
        return [*self._observers, "features"] if self.inline else [*self._observers]

    def at(self, site: str) -> tuple[InputObserver, ...]:
        """Return who sees the inputs of a linear layer."""
        return self._seats.get(site, ())

    def begin(self, requests: Iterable[LoRARequest], slots: SlotTable[int]) -> None:
        """Start a step with these requests."""
        running: dict[wire.ProbeKind, dict[int, RunningProbe]] = {
            kind: {} for kind in self._observers
        }
        for request in requests:
            order = wire.read_order(request)
            if order.probe in running:
                probe = request.lora_int_id
                running[order.probe][probe] = RunningProbe(
                    slots.slot(probe), order.skip, order.mix or {}, order.dense
                )
        for kind, observer in self._observers.items():
            observer.begin(running[kind])

    def take(
        self, kind: wire.ProbeKind, probes: Sequence[int], tokens: Sequence[int]
    ) -> wire.ProbeResult | None:
        """Return what was observed of probes of the same tokens, and forget it.

        It is None if they did not pass by as they were sent.
        """
        return self._observers[kind].take(probes, tokens)

    def _observe_output(self, comparison: ComparisonObserver, states: Tensor) -> None:
        if comparison.probes:
            comparison.observe(states, self._state.token_slots, None)
