"""What routing reads of a text, with no server running: states of the base's early layers, as the engine's tap sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.coefficient import layer_of
from router import turns
from router.policy import RouterError
from tta_serve.offline import MAX_TOKENS, Offline


@dataclass(frozen=True)
class EarlyFeatures:
    """The input of a decoder layer's first linear layer, the mean over a text's tokens, which is what `Probe.features` is.

    Raises RouterError if the base has no such layer.
    """

    offline: Offline
    layer: int

    def __call__(self, texts: Iterable[str], *, chat: bool = False) -> Tensor:
        """chat: of each as a user turn, as `means` has it. Returns [texts, hidden], float32."""
        return torch.cat([means(self.offline, text, [self.layer], chat=chat) for text in texts])

    def both(self, texts: Iterable[str]) -> Tensor:
        """Of each text bare, and as a user turn if the base has a chat template. Returns [texts, 1 or 2, hidden], float32."""
        return torch.stack([torch.cat([self([text], chat=chat) for chat in forms(self.offline)]) for text in texts])


def forms(offline: Offline) -> list[bool]:
    """How a server may read a text, as `chat` of `means`: bare, and as a user turn if the base has a chat template."""
    return [False, True] if offline.tokenizer.chat_template else [False]


def means(offline: Offline, text: str, layers: Sequence[int], *, chat: bool = False) -> Tensor:
    """The mean over a text's tokens of the `states` of some layers; chat: over the turn's tokens of `turn`, as a server reads.

    Returns [layers, hidden], float32.
    """
    ids, start = turn(offline, text) if chat else (tokens(offline, text), 0)
    return torch.stack([state[start:].mean(0) for state in states(offline, ids, layers)])


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
    ids = turns.tokens(offline.tokenizer, text) if chat else _encoded(offline, text)
    return torch.tensor([ids[-MAX_TOKENS:]])


def turn(offline: Offline, text: str) -> tuple[Tensor, int]:
    """A text as a user turn in the base's chat template, up to its end or its 512th token, and where it begins.

    A turn that is not found among the tokens is taken for the whole of them. Returns [1, tokens] and an index.
    """
    ids = turns.tokens(offline.tokenizer, text)
    start, end = turns.span(ids, _encoded(offline, text.strip())) or (0, len(ids))
    return torch.tensor([ids[: min(end, start + MAX_TOKENS)]]), start


def _encoded(offline: Offline, text: str) -> list[int]:
    ids: list[int] = offline.tokenizer.encode(text, add_special_tokens=False)
    return ids


def first_linear(model: Any, layer: int) -> nn.Module:
    """The first linear layer in decoder layer `layer`. Raises RouterError if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer_of(name) == layer:
            return module
    raise RouterError(f"the base has no decoder layer {layer}; it has 0 to {depth(model) - 1}")


def depth(model: Any) -> int:
    """How many decoder layers a model has."""
    return int(model.config.get_text_config().num_hidden_layers)
