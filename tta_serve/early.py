"""What routing reads of a text, with no server running: states of the base's early layers, as the engine's tap sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.coefficient import layer_of
from router.policy import RouterError
from tta_serve.offline import MAX_TOKENS, Offline


@dataclass(frozen=True)
class EarlyFeatures:
    """The mean over a text's tokens of the input of a decoder layer's first linear layer, which is what `Probe.features` is.

    Raises RouterError if the base has no such layer.
    """

    offline: Offline
    layer: int

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """Returns [texts, hidden], float32."""
        return torch.stack([states(self.offline, tokens(self.offline, t), [self.layer])[0].mean(0) for t in texts])


class _EnoughSeen(Exception):
    """Ends a forward pass."""


@torch.no_grad()
def states(offline: Offline, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The input of the first linear layer in each of some decoder layers, at every token; no later layer is run.

    ids: [1, tokens]   layers: rising. Returns [tokens, hidden] for each of them, float32. Raises RouterError as above.
    """
    found: dict[int, Tensor] = {}

    def watch(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[layer] = inputs[0][0].float()
            if layer == layers[-1]:
                raise _EnoughSeen

        return seen

    hooks = [first_linear(offline.model, layer).register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        with suppress(_EnoughSeen):
            offline.model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[layer] for layer in layers]


def tokens(offline: Offline, text: str, *, chat: bool = False) -> Tensor:
    """The last 512 tokens of a text without special ones; chat: as a user turn in the base's template, up to the answer.

    Returns [1, tokens].
    """
    if chat:
        turn = [{"role": "user", "content": text}]
        text = offline.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids: Tensor = offline.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids[:, -MAX_TOKENS:]


def first_linear(model: Any, layer: int) -> nn.Module:
    """The first linear layer in decoder layer `layer`. Raises RouterError if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer_of(name) == layer:
            return module
    raise RouterError(f"the base has no decoder layer {layer}; it has 0 to {depth(model) - 1}")


def depth(model: Any) -> int:
    """How many decoder layers a model has."""
    return int(model.config.get_text_config().num_hidden_layers)
