"""What routing reads of a text, with no server running.

These are states of the base's early layers, as the engine's tap sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.coefficient import layer_of
from router.errors import RouterError
from router.scoring import chat_turns
from tta_serve.offline.base_model import MAX_TOKENS, PlainModel


@dataclass(frozen=True)
class EarlyFeatures:
    """The mean, over a text's tokens, of the input of a decoder layer's first linear layer.

    That is what `router.probing.Probe.features` returns.

    Raises:
        RouterError: The base has no such layer.
    """

    plain: PlainModel
    """The base."""
    layer: int
    """The decoder layer."""

    def __call__(self, texts: Iterable[str], *, chat: bool = False) -> Tensor:
        """Return the features of some texts, [texts, hidden], float32.

        Args:
            texts: What to read.
            chat: Whether each is read as a user's turn, see `read_means`.
        """
        return torch.cat([read_means(self.plain, text, [self.layer], chat=chat) for text in texts])

    def read_all_forms(self, texts: Iterable[str]) -> Tensor:
        """Return the features of each text bare, and as a user's turn if there is a chat template.

        Returns:
            [texts, 1 or 2, hidden], float32.
        """
        forms = list_forms(self.plain)
        return torch.stack(
            [torch.cat([self([text], chat=chat) for chat in forms]) for text in texts]
        )


def list_forms(plain: PlainModel) -> list[bool]:
    """Return how a server may read a text, as values of `chat` in `read_means`.

    It is read bare, and as a user's turn if the base has a chat template.
    """
    return [False, True] if plain.tokenizer.chat_template else [False]


def read_means(
    plain: PlainModel, text: str, layers: Sequence[int], *, chat: bool = False
) -> Tensor:
    """Return the mean over a text's tokens of the `read_states` of some layers.

    Args:
        plain: The base.
        text: What to read.
        layers: Rising.
        chat: Whether the mean is over the turn's tokens of `tokenize_turn`, as a server reads.

    Returns:
        [layers, hidden], float32.
    """
    ids, start = tokenize_turn(plain, text) if chat else (tokenize(plain, text), 0)
    return torch.stack([state[start:].mean(0) for state in read_states(plain, ids, layers)])


class _EnoughSeen(Exception):
    """Ends a forward pass."""


@torch.no_grad()
def read_states(plain: PlainModel, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Return the input of the first linear layer in each of some decoder layers, at every token.

    No later layer is run.

    Args:
        plain: The base.
        ids: [1, tokens].
        layers: Rising.

    Returns:
        [tokens, hidden] for each of them, float32.

    Raises:
        RouterError: The base has no such layer.
    """
    found: dict[int, Tensor] = {}

    def watch(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[layer] = inputs[0][0].float()
            if layer == layers[-1]:
                raise _EnoughSeen

        return seen

    hooks = [
        find_first_linear(plain.model, layer).register_forward_pre_hook(watch(layer))
        for layer in layers
    ]
    try:
        with suppress(_EnoughSeen):
            plain.model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[layer] for layer in layers]


def tokenize(plain: PlainModel, text: str, *, chat: bool = False) -> Tensor:
    """Return the last 512 tokens of a text without special ones, [1, tokens].

    Args:
        plain: The base.
        text: What to read.
        chat: Whether it is a user's turn in the base's template, up to the answer.
    """
    ids = chat_turns.encode_turn(plain.tokenizer, text) if chat else _encoded(plain, text)
    return torch.tensor([ids[-MAX_TOKENS:]])


def tokenize_turn(plain: PlainModel, text: str) -> tuple[Tensor, int]:
    """Return a text as a user's turn in the base's chat template, and where the turn begins.

    The tokens go up to the turn's end or its 512th token. A turn that is not found among the tokens
    is taken for the whole of them.

    Returns:
        [1, tokens] and an index.
    """
    ids = chat_turns.encode_turn(plain.tokenizer, text)
    start, end = chat_turns.find_turn(ids, _encoded(plain, text.strip())) or (0, len(ids))
    return torch.tensor([ids[: min(end, start + MAX_TOKENS)]]), start


def _encoded(plain: PlainModel, text: str) -> list[int]:
    ids: list[int] = plain.tokenizer.encode(text, add_special_tokens=False)
    return ids


def find_first_linear(model: Any, layer: int) -> nn.Module:
    """Return the first linear layer in a decoder layer.

    Raises:
        RouterError: There is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer_of(name) == layer:
            return module
    raise RouterError(
        f"the base has no decoder layer {layer}; it has 0 to {count_layers(model) - 1}"
    )


def count_layers(model: Any) -> int:
    """Return how many decoder layers a model has."""
    return int(model.config.get_text_config().num_hidden_layers)
