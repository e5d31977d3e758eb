"""What an expert loses that acts only from some decoder layer upwards.

So it acts where that layer routes inside the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.coefficient import layer_of
from adapters.deltas import Deltas
from adapters.expert import LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.low_rank import energy_of
from router.probing import feature_layer
from tta_serve.offline.base_model import PlainModel, measure_change

_NOTHING = {"logprob_change_mean": 0.0, "logprob_change_max": 0.0, "kl_mean": 0.0}


@dataclass(frozen=True)
class UpperLayers:
    """Deltas of decoder layers from one on, and of the output head."""

    deltas: Deltas
    """All of them."""
    layer: int
    """The lowest layer that stays."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            weight: shape
            for weight, shape in self.deltas.shapes.items()
            if _is_above(weight, self.layer)
        }

    def delta(self, weight: str) -> Tensor:
        return self.deltas.delta(weight)

    def factors(self, weight: str) -> LowRank | None:
        return self.deltas.factors(weight)


def measure_energy_below(deltas: Deltas, layer: int) -> float:
    """Return the share of the deltas' squared Frobenius norm that `UpperLayers` leaves out.

    It is 0 if they are nothing.
    """
    energy = {weight: _energy(deltas, weight) for weight in deltas.shapes}
    below = sum(value for weight, value in energy.items() if not _is_above(weight, layer))
    return below / sum(energy.values()) if below else 0.0


def measure_loss(
    deltas: Deltas,
    layer: int,
    prompts: Sequence[str] = (),
    load: Callable[[], PlainModel | None] = lambda: None,
) -> dict[str, float]:
    """Return `measure_energy_below` and, if there are prompts, what leaving those out changes.

    The latter is `measure_change` over the prompts, from all deltas to `UpperLayers`.

    Args:
        deltas: Of the expert.
        layer: The lowest layer that stays.
        prompts: What to measure on.
        load: Makes the model, None where that cannot be; it is not called where nothing is left
            out, which changes nothing.
    """
    below = measure_energy_below(deltas, layer)
    if prompts and not below:
        return {"energy_below": below, **_NOTHING}

    model = load() if prompts else None
    if model is None:
        return {"energy_below": below}
    change = measure_change(model, deltas, UpperLayers(deltas, layer), prompts)
    return {"energy_below": below, **change}


def find_routing_layer(base: Checkpoint) -> int:
    """Return the decoder layer at which a server of this base routes."""
    layers = (own for weight in base.files if (own := layer_of(weight)) is not None)
    return feature_layer(1 + max(layers, default=-1))


def _is_above(weight: str, layer: int) -> bool:
    own = layer_of(weight)
    # Of what is in no layer the output head alone follows a mix that a layer decides.
    return "lm_head" in weight.split(".") if own is None else own >= layer


def _energy(deltas: Deltas, weight: str) -> float:
    factors = deltas.factors(weight)
    return energy_of(deltas.delta(weight) if factors is None else factors)
