"""Features with a known answer, and a probe that looks them up."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.policies.retrieval import RetrievalPolicy
from router.policy import Context
from router.probing import Activations, Outputs, Window
from router.registry import create_policy
from tta_serve.offline.train_gate import GateSamples, train


def make_clusters(
    per_class: int = 20, d: int = 32, spread: float = 0.3, names: str = "abc"
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Draw features around a centre for each expert, and around one for everyday prompts.

    Args:
        per_class: How many around each centre.
        d: How many features.
        spread: How far around it.
        names: Of the experts, a letter each.

    Returns:
        By expert, [per_class, d], and those of everyday prompts.
    """
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(len(names) + 1, d, generator=g)
    *of_experts, everyday = [c + spread * torch.randn(per_class, d, generator=g) for c in centers]
    return dict(zip(names, of_experts, strict=True)), everyday


class KnownFeatures:
    """A probe that knows some prompts' features.

    A prompt is the name of a row of features: a0, a1, ... are prompts of expert a; e0, e1, ... are
    everyday ones. `context` has them as examples.
    """

    def __init__(self, names: str = "abc", spread: float = 0.3) -> None:
        """Draw the features.

        Args:
            names: Of the experts, a letter each.
            spread: How far prompts of an expert are apart.
        """
        self.clusters, self.everyday = make_clusters(names=names, spread=spread)
        rows = {**self.clusters, "e": self.everyday}
        self.by_text: dict[str, torch.Tensor] = {
            f"{n}{i}": row for n, f in rows.items() for i, row in enumerate(f)
        } | {"Hello": self.everyday[0]}
        self.context = Context(
            rules=MixRules(frozenset(names), layers=2),
            examples={n: [f"{n}{i}" for i in range(20)] for n in names},
            everyday=[f"e{i}" for i in range(20)],
            probe=self,
            digests={n: n * 64 for n in names},
        )

    async def features(self, text: str, *, chat: bool = False) -> torch.Tensor:
        return self.by_text[text]

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        raise AssertionError("no policy here compares")

    async def activations(self, text: str) -> Activations:
        raise AssertionError("no policy here reads activations")


def drop_expert(context: Context, name: str) -> Context:
    """Return the library after an expert is gone."""
    kept = context.rules.names - {name}
    return replace(
        context,
        rules=replace(context.rules, names=kept),
        digests={n: context.digests[n] for n in kept},
    )


def make_retrieval(names: str = "abc", **options: Any) -> tuple[RetrievalPolicy, KnownFeatures]:
    """Create a retrieval policy over known features, and return both."""
    known = KnownFeatures(names)
    policy = asyncio.run(create_policy("retrieval", options, known.context))
    assert isinstance(policy, RetrievalPolicy)
    return policy, known


def make_between(known: KnownFeatures) -> torch.Tensor:
    """Return features between those of a and b, nearer to a."""
    return 0.55 * known.by_text["a1"] + 0.45 * known.by_text["b1"]


def make_both(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return features of prompts that want two experts: between theirs, and moved a little."""
    return (features + others) / 2 + 0.5


def train_gate(
    known: KnownFeatures, folder: Path, names: str = "abc", layer: int = 0, *, both: bool = False
) -> Context:
    """Return the context with a gate of some of its experts.

    Args:
        known: The prompts.
        folder: Where the gate is written.
        names: The experts that it knows.
        layer: Whose input the features are said to be.
        both: Whether it has heard prompts that want a and b, which the probe then knows as ab0,
            ab1, ...
    """
    features = {name: known.clusters[name] for name in names}
    digests = {name: known.context.digests[name] for name in names}
    pairs = {("a", "b"): make_both(features["a"], features["b"])} if both else {}
    known.by_text |= {f"ab{i}": row for rows in pairs.values() for i, row in enumerate(rows)}
    train(digests, layer, GateSamples(features, known.everyday, pairs)).save(folder)
    return replace(known.context, artifacts=folder)


def plain_coefficients(mix: Mix) -> list[float]:
    """Return a mix's coefficients in ascending order; none of them differs from place to place."""
    found = [value for value in mix.as_dict().values() if isinstance(value, float)]
    assert len(found) == len(mix.coefficients)
    return sorted(found)
