"""retrieval: the experts whose example prompts look most like this one to the base."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.selector import InlineSelector, Selection
from router.policy import Context, Options
from router.probing import Probe, read_features
from router.scoring.centroids import FOLDS, Calibration, Centroids, calibrate, fit
from router.scoring.heads import Head
from router.scoring.shares import keep_best, softmax

_MOST = {"top1": 1, "top3": 3}
_NOTHING_TO_CHOOSE = Calibration(threshold=0.0, temperature=1.0)


class RetrievalOptions(Options):
    """Options of `retrieval`."""

    mode: Literal["top1", "top3", "sparse"] = "top3"
    """Which shares count."""
    threshold: float | None = None
    """The margin that an expert must reach, instead of the calibrated one."""
    temperature: float | None = Field(None, gt=0)
    """T, instead of the calibrated one."""
    minimum: float = Field(0.01, ge=0, lt=1)
    """Shares must be above it to count; only for `sparse`."""
    keep: float = Field(0.1, ge=0)
    """By how much another margin must be ahead to end a conversation's mix."""


class RetrievalPolicy(InlineSelector):
    """The experts whose example prompts are nearest, read in the base's own early layers.

    An expert with too few of them is known by the requests that pinned it, where a server keeps
    what the base reads in those; as long as they are too few as well, it is not chosen.

    Scores are margins s of `router.scoring.centroids` on the mean early-layer state of the last
    user turn. The base answers if the best margin is below the threshold. Otherwise shares are
    softmax(s / T), of which count, divided by their sum: the best (`top1`), the three best
    (`top3`), or all over `minimum` (`sparse`). T is calibrated, which makes them peaked: a clear
    prompt gets one expert, an ambiguous one a blend.

    Retrieval by prompt similarity: LoraRetriever (Zhao et al. 2024, arXiv 2402.09997: one or three
    experts), TTMM (Bertolissi et al. 2025, arXiv 2505.14136: sparse, minimum 0.01); both embed with
    a second model, here the base does.
    """

    Options = RetrievalOptions
    reads_features = True

    def __init__(
        self,
        options: RetrievalOptions,
        rules: MixRules,
        centroids: Centroids,
        calibration: Calibration,
        *,
        inline: bool,
    ) -> None:
        super().__init__(rules, inline=inline)
        self._options = options
        self.keep = options.keep
        self._centroids = centroids
        self.threshold = calibration.threshold if options.threshold is None else options.threshold
        self.temperature = options.temperature or calibration.temperature

    @classmethod
    async def create(cls, options: RetrievalOptions, context: Context) -> Self:
        names = sorted(context.rules.classes)
        _check_prompts(names, context)
        read = partial(read_features, probe=context.probe, chat=context.inline)
        features = {
            name: await _read_examples(name, context, read)
            for name in names
            if _count_examples(name, context) >= FOLDS
        }
        everyday = await read(context.everyday)
        fitted = await asyncio.to_thread(
            lambda: (
                fit(features, everyday),
                calibrate(features, everyday) if features else _NOTHING_TO_CHOOSE,
            )
        )
        return cls(options, context.rules, *fitted, inline=context.inline)

    @property
    def candidates(self) -> frozenset[str]:
        """The experts that it may choose: those of which there are examples."""
        return frozenset(self._centroids.names)

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        return self.select_by(await self.read_features(prompt, probe))

    def select_by(self, features: Tensor) -> Selection:
        """Return the selection for one prompt's features, [d]."""
        margins = self._centroids.score(features).tolist()
        return self.judge(0, dict(zip(self._centroids.names, margins, strict=True)), self.threshold)

    def make_heads(self) -> tuple[Head, ...]:
        """Return one head, for margins are linear in z: s_k = <z, c_k - c_none>."""
        known = self._centroids
        weight = torch.cat([known.experts - known.none, torch.zeros_like(known.none).unsqueeze(0)])
        bias = torch.tensor([0.0] * len(known.names) + [self.threshold])
        head = Head(
            names=known.names,
            mean=known.mean,
            std=known.std,
            weight=weight,
            bias=bias,
            unit=True,
            temperature=self.temperature,
            top=_MOST.get(self._options.mode, len(known.names)),
            minimum=self._minimum,
            keep=self.keep,
        )
        return (head,)

    def judge(
        self, head: int, scores: Mapping[str, float], floor: float, several: float = -math.inf
    ) -> Selection:
        if not scores:
            return Selection({}, {}, floor, "no expert has example prompts or pinned requests yet")
        margin = max(scores.values())
        if margin < floor:
            return Selection({}, scores, floor, f"best margin {margin:.3f} below {floor:.3f}")
        shares = softmax(scores, self.temperature)
        weights = keep_best(shares, _MOST.get(self._options.mode), self._minimum)
        return Selection(weights, scores, floor, f"best margin {margin:.3f}")

    @property
    def _minimum(self) -> float:
        return self._options.minimum if self._options.mode == "sparse" else 0.0


def lacks_examples(name: str, examples: Mapping[str, Sequence[str]]) -> bool:
    """Return whether an expert has too few example prompts to be known by them alone."""
    return len(examples.get(name, ())) < FOLDS


def _find_pinned(name: str, context: Context) -> Tensor | None:
    """Return the features of pinned requests that an expert needs, None if it needs none."""
    if context.pinned is None or not lacks_examples(name, context.examples):
        return None
    return context.pinned.get(name)


def _count_examples(name: str, context: Context) -> int:
    """Return how many examples there are of an expert, with pinned requests if it needs them."""
    pinned = _find_pinned(name, context)
    return len(context.examples.get(name, ())) + (0 if pinned is None else len(pinned))


async def _read_examples(
    name: str, context: Context, read: Callable[[Sequence[str]], Awaitable[Tensor]]
) -> Tensor:
    """Return the features of an expert's examples, [n, hidden], or [n, 2, hidden] if inline.

    Args:
        name: The expert.
        context: Says what there is of it.
        read: Reads prompts.
    """
    prompts = context.examples.get(name, ())
    pinned = _find_pinned(name, context)
    parts = [await read(prompts)] if prompts else []
    if pinned is not None:
        parts.append(pinned if context.inline else pinned[:, 0])
    return torch.cat(parts)


def _check_prompts(names: list[str], context: Context) -> None:
    """Check that there are experts, with enough examples, and enough everyday prompts.

    Raises:
        RouterError: Something is missing; the message says what.
    """
    if not names:
        raise RouterError(
            "retrieval needs an expert to choose; without any, choose the policy 'static'"
        )
    missing = [name for name in names if _count_examples(name, context) < FOLDS]
    if missing and context.pinned is None:
        raise RouterError(
            f"retrieval needs at least {FOLDS} example prompts an expert, one a line in its"
            f" examples.txt; too few for: {', '.join(missing)}. Add them, or set"
            " library.pinned to learn from requests that pin an expert, or choose the policy"
            " 'static'"
        )
    if len(context.everyday) < FOLDS:
        raise RouterError(
            f"retrieval needs at least {FOLDS} everyday prompts, one a line in the file of"
            " library.everyday"
        )
