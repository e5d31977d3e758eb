"""Asking the engine for many things at once, and where it reads features."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from router.policy import Probe

_AT_ONCE = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def feature_layer(layers: int) -> int:
    """The decoder layer whose input is a prompt's features, in a base of so many: a fifth of the way up."""
    return layers // 5


async def gathered(function: Callable[[Item], Awaitable[Answer]], items: Iterable[Item]) -> list[Answer]:
    """The function's answers in the order of the items, at most 16 under way at a time. The first error
    ends the rest."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(item: Item) -> Answer:
        async with free:
            return await function(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def all_features(prompts: Sequence[str], probe: Probe, *, chat: bool = False) -> Tensor:
    """Of each prompt bare; if `chat` also in the base's chat template. Returns [prompts, hidden], or [prompts, 2, hidden]."""
    bare = torch.stack(await gathered(probe.features, prompts))
    if not chat:
        return bare
    turns = await gathered(lambda prompt: probe.features(prompt, chat=True), prompts)
    return torch.stack([bare, torch.stack(turns)], 1)
