"""What an expert loses that acts only from a decoder layer upwards, as it does where that layer routes inside the pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.canonical import energy_of
from adapters.checkpoint import Checkpoint
from adapters.coefficient import layer_of
from adapters.deltas import Deltas
from adapters.expert import LowRank
from router.probing import feature_layer
from tta_serve.offline import Offline, change

_NOTHING = {"logprob_change_mean": 0.0, "logprob_change_max": 0.0, "kl_mean": 0.0}


@dataclass(frozen=True)
class Upper:
    """Deltas without those of weights below a decoder layer; weights outside of decoder layers count as below."""

    deltas: Deltas
    layer: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {weight: shape for weight, shape in self.deltas.shapes.items() if _is_above(weight, self.layer)}

    def delta(self, weight: str) -> Tensor:
        return self.deltas.delta(weight)

    def factors(self, weight: str) -> LowRank | None:
        return self.deltas.factors(weight)


def energy_below(deltas: Deltas, layer: int) -> float:
    """The share of the squared Frobenius norm of all deltas that `Upper` leaves out, 0 if there is none."""
    energy = {weight: _energy(deltas, weight) for weight in deltas.shapes}
    below = sum(value for weight, value in energy.items() if not _is_above(weight, layer))
    return below / sum(energy.values()) if below else 0.0


def lost(
    deltas: Deltas, layer: int, prompts: Sequence[str] = (), offline: Callable[[], Offline | None] = lambda: None
) -> dict[str, float]:
    """`energy_below`, and if there are prompts `offline.change` over them from all deltas to `Upper`.

    offline: makes the model, None where that cannot be; not called where nothing is left out, which changes nothing
    """
    below = energy_below(deltas, layer)
    if prompts and not below:
        return {"energy_below": below, **_NOTHING}
    model = offline() if prompts else None
    return {"energy_below": below, **(change(model, deltas, Upper(deltas, layer), prompts) if model else {})}


def routing_layer(base: Checkpoint) -> int:
    """The decoder layer at which a server of this base routes."""
    return feature_layer(1 + max((own for weight in base.files if (own := layer_of(weight)) is not None), default=-1))


def _is_above(weight: str, layer: int) -> bool:
    own = layer_of(weight)
    return own is not None and own >= layer


def _energy(deltas: Deltas, weight: str) -> float:
    factors = deltas.factors(weight)
    return energy_of(deltas.delta(weight) if factors is None else factors)
