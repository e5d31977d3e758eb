"""The norms of a model of vLLM whose weights experts may change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

from adapters.coefficient import HEAD, Place, layer_of
from tta_serve.engine.worker.coefficient_table import ENTRY
from tta_serve.engine.worker.sites import find_text_model

_AFTER_ATTENTION = "post_attention_layernorm"


@dataclass(frozen=True)
class NormSite:
    """A norm y = N(x) w, or y = N(x) w + b, of which experts may change w and b.

    Whatever the base makes of its weight, as Gemma does of it plus one, a change dw changes y by
    N(x) dw.
    """

    name: str
    """vLLM's name of it."""
    layer: nn.Module
    """The layer itself."""
    place: Place
    """The attention or MLP that it is part of; `HEAD` after all layers, `ENTRY` before what decides
    inside the pass."""
    size: int
    """The size of its weight."""
    vectors: int
    """How many it has: its weight, and a bias after that."""
    normalise: Callable[[Tensor], Tensor]
    """N, which makes float32 of x, [.., size]."""


def find_norm_sites(
    model: nn.Module, config: ModelConfig, tap_layer: int | None
) -> dict[str, NormSite]:
    """Return the norms of the text model to which experts may add, by vLLM's name.

    Args:
        model: vLLM's model.
        config: vLLM's configuration of it.
        tap_layer: The decoder layer at whose first linear layer passes decide, None for none.

    Norms of a kind that is not known are left out, and so are those without a weight, and those of
    layers that only draft.
    """
    names = {name for name, _ in model.named_modules()}
    of_text = set(find_text_model(model).modules())
    layers = config.get_total_num_hidden_layers()
    found = {}
    for name, module in model.named_modules():
        normalise = _find_product(module)
        if normalise is None or module not in of_text or not _is_run(name, layers):
            continue
        weight: Any = module.weight
        place = _find_place(name, names, tap_layer)
        vectors = 1 if getattr(module, "bias", None) is None else 2
        found[name] = NormSite(name, module, place, len(weight), vectors, normalise)
    return found


def _is_run(name: str, layers: int) -> bool:
    """Whether every text passes a norm: those of the decoder layers, and the one after them."""
    index = layer_of(name)
    return (
        name.rpartition(".")[2] in ("norm", "final_layernorm") if index is None else index < layers
    )


def _find_place(name: str, names: Iterable[str], tap_layer: int | None) -> Place:
    index = layer_of(name)
    if index is None:
        return HEAD
    parent, _, leaf = name.rpartition(".")
    if leaf == "input_layernorm" and index == tap_layer:
        return ENTRY
    # Where MLPs have a norm of their own before them, this one is of what attention makes.
    before_mlp = leaf == _AFTER_ATTENTION and f"{parent}.pre_feedforward_layernorm" not in names
    of_mlp = before_mlp or "feedforward" in leaf or "mlp" in name
    return Place(index, "mlp" if of_mlp else "attention")


def _find_product(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return what a norm does before it multiplies by its weight; None for what is no such norm."""
    kind: Any = type(module)
    if getattr(module, "weight", None) is None:
        return None
    if kind in (RMSNorm, GemmaRMSNorm):
        partly = getattr(module, "variance_size_override", None) is not None
        whole = getattr(module, "has_weight", True) and not partly
        epsilon = float(module.variance_epsilon)  # type: ignore[arg-type]
        return (lambda x: _divide_by_root_mean_square(x.float(), epsilon)) if whole else None
    if kind is nn.LayerNorm:
        layer: Any = module
        return lambda x: nn.functional.layer_norm(x.float(), layer.normalized_shape, eps=layer.eps)
    return None


def _divide_by_root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
