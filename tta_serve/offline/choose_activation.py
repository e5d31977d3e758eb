"""From which point of a prompt on experts should act: `tta router choose-activation`.

What stands before that point runs as the base, so that all mixes share what is cached of it: the
later, the more is shared, and the more of an expert is lost that was trained to act everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import kl_div

from router.scoring import chat_turns
from tta_serve.offline.mixed_model import MixedModel, Rule, Sample, Site

POINTS = ("start", "user_turn", "answer")
"""Where an expert may begin to act, as `merge.acts_from` calls it; the earliest first."""
MOST_KL = 0.01
"""In nats."""
LEAST_AGREEMENT = 0.99


@dataclass(frozen=True)
class ActivationLoss:
    """What an expert loses by acting only from a point on, over the tokens of its own answers.

    p are its predictions where it acts from the first token on, q where it acts from the point on.
    """

    kl: float
    """The mean of KL(p || q), nats."""
    agreement: float
    """The share of tokens that are the likeliest by p and by q."""
    whole: float
    """The share of answers all of whose tokens are."""

    @property
    def is_small(self) -> bool:
        """Whether hardly anything is lost."""
        return self.kl < MOST_KL and self.agreement >= LEAST_AGREEMENT


@torch.no_grad()
def measure_activation(
    mixed: MixedModel,
    expert: int,
    asked: Sequence[tuple[str, Sample]],
    tell: Callable[[], None] = lambda: None,
) -> dict[str, ActivationLoss]:
    """Measure what an expert loses from each point on.

    Args:
        mixed: The base with the expert.
        expert: Its number.
        asked: Prompts, and what the expert answers to each.
        tell: Is called after each prompt.

    Returns the loss by point.
    """
    found: dict[str, list[tuple[float, float, float]]] = {point: [] for point in POINTS}
    for prompt, sample in asked:
        whole = mixed.predict(sample, mixed.isolate(expert)).logits.log_softmax(-1)
        for point, start in find_points(mixed, prompt, sample).items():
            logits = mixed.predict(sample, _act_from(expert, start)).logits
            found[point].append(_compare(whole, logits.log_softmax(-1)))
        tell()
    return {
        point: ActivationLoss(*(mean(column) for column in zip(*rows, strict=True)))
        for point, rows in found.items()
    }


def find_points(mixed: MixedModel, prompt: str, sample: Sample) -> dict[str, int]:
    """Return the token of a sample at which each point is, as a server finds it.

    Without a chat template the user's turn is the whole prompt, and its last token opens the
    answer.
    """
    tokenizer = mixed.plain.tokenizer
    tokens = sample.ids[0].tolist()
    tokens = tokens[: len(tokens) + 1 - sample.answer]
    turn = chat_turns.find_turn(tokens, tokenizer.encode(prompt.strip(), add_special_tokens=False))
    opening = max(len(chat_turns.encode_opening(tokenizer)), 1)
    return {"start": 0, "user_turn": turn[0] if turn else 0, "answer": len(tokens) - opening}


def choose_activation(losses: Mapping[str, ActivationLoss]) -> str:
    """Return the latest point from which on hardly anything is lost."""
    return next(point for point in reversed(POINTS) if point == "start" or losses[point].is_small)


def make_table(losses: Mapping[str, Mapping[str, ActivationLoss]]) -> Table:
    """Make a table of what experts lose.

    Args:
        losses: By expert, as `measure_activation` returns them.
    """
    later = POINTS[1:]
    table = Table(
        "expert",
        *(f"{point}: {figure}" for point in later for figure in ("KL", "tokens", "answers")),
        "act from",
        title="What experts lose that act from a later point on: nats, shares that stay the same",
    )
    for name, own in losses.items():
        cells = (
            text
            for point in later
            for text in (
                f"{own[point].kl:.4f}",
                f"{own[point].agreement:.3f}",
                f"{own[point].whole:.2f}",
            )
        )
        table.add_row(name, *cells, choose_activation(own))
    return table


def _act_from(expert: int, start: int) -> Rule:
    """Return the rule by which one expert acts, as it is, from a token on."""

    def rule(site: Site, h: Tensor) -> Tensor:
        acts = torch.arange(h.shape[1]) >= start
        return acts.unsqueeze(1) * (site.owners == expert)

    return rule


def _compare(p: Tensor, q: Tensor) -> tuple[float, float, float]:
    """Return KL(p || q), the share of equal choices, and 1 if all are equal, else 0.

    Args:
        p: [tokens, vocabulary], logarithms.
        q: Likewise.
    """
    kl = kl_div(q, p, reduction="batchmean", log_target=True)
    same = p.argmax(-1) == q.argmax(-1)
    return float(kl), float(same.float().mean()), float(same.all())
