"""The observers of a worker, one for each kind of probe, and where in the model they sit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest

from adapters.errors import ExpertError
from tta_serve.engine import wire
from tta_serve.engine.attach import Site, first_sites, tapped_site
from tta_serve.engine.observer import Observer, Running, Tap
from tta_serve.engine.readout import Readout
from tta_serve.engine.slots import SlotTable
from tta_serve.engine.step import StepState
from tta_serve.engine.watch import Watch


class Probes:
    """features: at the first linear layer of an early decoder layer   compare: at the model's output
    activations: at the first linear layer of every attention and MLP
    """

    def __init__(
        self, model: Any, sites: Mapping[str, Site], state: StepState, config: VllmConfig, tap_layer: int | None
    ) -> None:
        """tap_layer: where features are read, None for nowhere

        Without observers where CUDA graphs are captured: a replayed graph passes by them. Raises ExpertError if features are
        wanted all the same.
        """
        if state.captured and tap_layer is not None:
            raise ExpertError("features cannot be read from captured CUDA graphs; start with enforce_eager, or without a tap")
        self._state = state
        names = {place: site.name for place, site in first_sites(sites).items()}
        self.watch = Watch(names, state.token_slots.device)
        self._seats: dict[str, tuple[Observer[Any], ...]] = {}  # by site
        self._observers: dict[str, Observer[Any]] = {}
        if state.captured:
            return
        readout = Readout(model.compute_logits, config.model_config.get_vocab_size())
        self._observers = {"compare": readout, "activations": self.watch}
        self._seats = dict.fromkeys(names.values(), (self.watch,))
        if tap_layer is not None:
            tap = self._observers["features"] = Tap()
            name = tapped_site(sites, tap_layer)
            self._seats[name] = tap, *self._seats.get(name, ())
        model.register_forward_hook(lambda _module, _args, states: self._at_output(readout, states))

    @property
    def kinds(self) -> list[str]:
        """The kinds of probes that are observed."""
        return list(self._observers)

    def at(self, site: str) -> tuple[Observer[Any], ...]:
        """Who sees the inputs of a linear layer."""
        return self._seats.get(site, ())

    def begin(self, requests: Iterable[LoRARequest], slots: SlotTable) -> None:
        """Start a step with these requests."""
        running: dict[str, dict[int, Running]] = {kind: {} for kind in self._observers}
        for request in requests:
            if wire.is_probe(request):
                wanted, probe = wire.probe(request), request.lora_int_id
                running.get(wanted.kind, {})[probe] = Running(slots.slot(probe), wanted.skip)
        for kind, observer in self._observers.items():
            observer.begin(running[kind])

    def take(self, kind: str, probes: Sequence[int], tokens: Sequence[int]) -> Any:
        """What was observed of probes of the same tokens, None if they did not pass by as they were sent."""
        return self._observers[kind].take(probes, tokens)

    def _at_output(self, readout: Readout, states: Tensor) -> None:
        if readout.probes:
            readout.observe(states, self._state.token_slots, None)
