"""What a policy may ask of the engine, and how to ask for many things at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from adapters.mix import Mix
from router.decision import Prompt

AT_ONCE = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Window:
    """Which tokens a comparison of models looks at."""

    last: int = 64
    """So many of the prompt, the last ones."""
    draft: int = 0
    """So many after them, which the base adds greedily."""


@dataclass(frozen=True)
class Outputs:
    """What the base and some candidate mixes predict over a window of the same tokens.

    Row 0 is the base, rows 1 ... are the candidates; p_k is the distribution of row k over the
    next token.
    """

    js: Tensor
    """[candidates], mean over positions of JS(p_0, p_k), nats, in [0, ln 2]."""
    entropy: Tensor
    """[1 + candidates], mean over positions of H(p_k), nats."""
    nll: Tensor
    """[1 + candidates], mean of -log p_k(x_(t+1) | x_(<=t)), nats, over the positions whose next
    token is known."""
    positions: int
    """How many positions the window has."""


@dataclass(frozen=True)
class Activations:
    """How much of the base's own states lies in what each expert reads.

    A site is a linear layer whose input is watched for some expert. With B_k A_k = U S V^T (thin
    SVD) expert k's change of the site's weight and x the site's input, means are over the tokens of
    a text. Tables are [experts, sites], NaN where an expert leaves a site alone.
    """

    experts: tuple[str, ...]
    """The names of the rows."""
    sites: tuple[str, ...]
    """The names of the columns."""
    arrow: Tensor
    """[experts, sites], mean |v_1 . x|."""
    spectr: Tensor
    """[experts, sites], mean ||V^T x||."""
    norm: Tensor
    """[experts, sites], ||S V^T x|| at the last token, which is ||B_k A_k x||."""
    residual: Tensor
    """[experts, sites], mean ||x - V V^T x||."""
    inputs: Tensor
    """[sites], mean ||x||."""


class Probe(Protocol):
    """What a policy may ask of the engine; each method raises the engine's error if it fails."""

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        """Return the base's early reading of a text, [hidden], float32.

        That is the mean, over the text's tokens, of the input of the decoder layer `feature_layer`.

        Args:
            text: What to read.
            chat: Whether to put the base's chat template around it, as a user's turn is read by a
                request that routes itself.
        """
        ...

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        """Run the prompt through the base and every candidate, as rows of one batch."""
        ...

    async def activations(self, text: str) -> Activations:
        """Run a text through the base and score all experts on the way."""
        ...


def feature_layer(layers: int) -> int:
    """Return the decoder layer whose input is a prompt's features, in a base of so many layers.

    It is a fifth of the way up.
    """
    return layers // 5


async def gather_all(
    function: Callable[[Item], Awaitable[Answer]], items: Iterable[Item], at_once: int = AT_ONCE
) -> list[Answer]:
    """Return the function's answers in the order of the items, at most `at_once` under way.

    The first error ends the rest.
    """
    free = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Answer:
        async with free:
            return await function(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def read_features(prompts: Sequence[str], probe: Probe, *, chat: bool = False) -> Tensor:
    """Read the features of several prompts, bare and, if `chat`, also in the base's chat template.

    Returns:
        [prompts, hidden], or [prompts, 2, hidden] with `chat`.
    """
    bare = torch.stack(await gather_all(probe.features, prompts))
    if not chat:
        return bare
    turns = await gather_all(lambda prompt: probe.features(prompt, chat=True), prompts)
    return torch.stack([bare, torch.stack(turns)], 1)
