"""The observers of a worker, one for each kind of probe, and where in the model they sit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest

from tta_serve.engine import wire
from tta_serve.engine.attach import Site, first_sites, tapped_site
from tta_serve.engine.inline import Inline
from tta_serve.engine.observer import Observer, Running, Sees
from tta_serve.engine.readout import Readout
from tta_serve.engine.slots import SlotTable
from tta_serve.engine.step import StepState
from tta_serve.engine.watch import Watch


class Probes:
    """compare: at the model's output   activations: at the first linear layer of every attention and MLP

    features: by `inline`, at the first linear layer of an early decoder layer
    """

    def __init__(
        self, model: Any, sites: Mapping[str, Site], state: StepState, config: VllmConfig, tap_layer: int | None
    ) -> None:
        """tap_layer: where features are read, None for nowhere

        Where CUDA graphs are captured only features are observed: a replayed graph passes by the others.
        """
        self._state = state
        names = {place: site.name for place, site in first_sites(sites).items()}
        self.watch = Watch(names, state.token_slots.device)
        self.inline: Inline | None = None
        self._seats: dict[str, tuple[Sees, ...]] = {}  # by site
        self._observers: dict[str, Observer[Any]] = {}
        if not state.captured:
            readout = Readout(model.compute_logits, config.model_config.get_vocab_size())
            self._observers = {"compare": readout, "activations": self.watch}
            self._seats = dict.fromkeys(names.values(), (self.watch,))
            model.register_forward_hook(lambda _module, _args, states: self._at_output(readout, states))
        if tap_layer is not None:
            name, limits = tapped_site(sites, tap_layer), config.scheduler_config
            width = sites[name].layer.input_size
            self.inline = Inline(state, width, limits.max_num_seqs, limits.max_num_batched_tokens)
            self._seats[name] = self.inline, *self._seats.get(name, ())

    @property
    def kinds(self) -> list[str]:
        """The kinds of probes that are observed."""
        return [*self._observers, *(["features"] if self.inline else [])]

    def at(self, site: str) -> tuple[Sees, ...]:
        """Who sees the inputs of a linear layer."""
        return self._seats.get(site, ())

    def begin(self, requests: Iterable[LoRARequest], slots: SlotTable[int]) -> None:
        """Start a step with these requests."""
        running: dict[str, dict[int, Running]] = {kind: {} for kind in self._observers}
        for request in requests:
            wanted, probe = wire.wanted(request), request.lora_int_id
            if wanted.probe in running:
                running[wanted.probe][probe] = Running(slots.slot(probe), wanted.skip)
        for kind, observer in self._observers.items():
            observer.begin(running[kind])

    def take(self, kind: str, probes: Sequence[int], tokens: Sequence[int]) -> Any:
        """What was observed of probes of the same tokens, None if they did not pass by as they were sent."""
        return self._observers[kind].take(probes, tokens)

    def _at_output(self, readout: Readout, states: Tensor) -> None:
        if readout.probes:
            readout.observe(states, self._state.token_slots, None)
