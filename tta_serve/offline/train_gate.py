"""How a gate is trained: AdamW on all prompts at once, up to the least validation loss.

The validation prompts calibrate it too. The gate itself is `router.scoring.trained_gate`.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from router.errors import RouterError
from router.scoring.centroids import FOLDS, find_temperature, find_threshold, split_fold
from router.scoring.trained_gate import Gate, GateRecord, make_head

_TEMPERATURES = torch.logspace(-1.3, 1.3, 53)
_EDGE = 1e-6


@dataclass(frozen=True)
class GateSamples:
    """Features of prompts, to train or to validate a gate with.

    They are [n, d], or [n, forms, d] of prompts that were read in several forms, each of which is a
    row for training and for the figures.
    """

    experts: Mapping[str, Tensor]
    """By the name of the expert that should answer."""
    everyday: Tensor
    """Of prompts that no expert should answer."""

    def split(self) -> tuple["GateSamples", "GateSamples"]:
        """Return four fifths of the prompts to train on and one to hold out."""
        experts = {name: split_fold(f, 0) for name, f in self.experts.items()}
        everyday = split_fold(self.everyday, 0)
        train, held = (
            GateSamples({name: parts[k] for name, parts in experts.items()}, everyday[k])
            for k in (0, 1)
        )
        return train, held

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return features [rows, d] and labels [rows].

        Labels are the experts in the order of their names, everyday last.
        """
        classes = [*(self.experts[name] for name in sorted(self.experts)), self.everyday]
        parts = [features.flatten(0, -2) for features in classes]
        labels = [torch.full((len(part),), k) for k, part in enumerate(parts)]
        return torch.cat(parts), torch.cat(labels)

    def check(self, names: Mapping[str, str], least: int, use: str) -> None:
        """Check that there are enough prompts of every expert and of the everyday ones.

        Args:
            names: The experts.
            least: So many must be there of each.
            use: What they are for, for the message.

        Raises:
            RouterError: There are fewer.
        """
        counts = {name: len(self.experts.get(name, ())) for name in sorted(names)}
        counts["everyday"] = len(self.everyday)
        few = [f"{name} has {count}" for name, count in counts.items() if count < least]
        if few:
            raise RouterError(
                f"{use} a gate takes at least {least} prompts of each expert and everyday ones:"
                f" {', '.join(few)}"
            )


@dataclass(frozen=True)
class GateSettings:
    """How to train."""

    hidden: int = 0
    """The width of the hidden layer, 0 for none."""
    dropout: float = 0.1
    """Of the hidden layer."""
    lr: float = 3e-3
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    epochs: int = 1000
    """How many at most."""
    patience: int = 50
    """So many epochs without a lower validation loss end the training."""
    seed: int = 0
    """Of all draws."""


def train(
    digests: Mapping[str, str],
    layer: int,
    samples: GateSamples,
    validation: GateSamples | None = None,
    settings: GateSettings = GateSettings(),
) -> Gate:
    """Train the gate of some experts; the same arguments give the same gate.

    Classes count alike in the loss, however many prompts each has.

    Args:
        digests: The digests of the experts' weights, by name.
        layer: The decoder layer whose input the features are.
        samples: What to train on.
        validation: What ends the training, and sets temperature and threshold; without it a fifth
            of the samples.
        settings: How to train.

    Raises:
        RouterError: There are fewer than 5 prompts of an expert or everyday, or none of them in the
            validation.
    """
    samples.check(digests, FOLDS, "training")
    if validation is None:
        samples, validation = samples.split()
    validation.check(digests, 1, "validating")
    (x, labels) = samples.rows()
    (held, held_labels) = validation.rows()
    mean = x.mean(0)
    std = x.std(0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = make_head(x.shape[1], settings.hidden, len(digests) + 1, settings.dropout)
        train_on = ((x - mean) / std, labels)
        judge_on = ((held - mean) / std, held_labels)
        epochs = _descend(head, train_on, judge_on, settings)
    about = GateRecord(
        digests, layer, settings.hidden, temperature=1.0, threshold=0.5, figures={"epochs": epochs}
    )
    return _calibrate(Gate(about, mean, std, head), held, held_labels)


def _descend(
    head: nn.Sequential,
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    settings: GateSettings,
) -> int:
    """Train the head, leave it with the weights of its best epoch, and return its number."""
    optimizer = torch.optim.AdamW(
        head.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    least = float("inf")
    best = 0
    kept = deepcopy(head.state_dict())
    for epoch in range(1, settings.epochs + 1):
        head.train()
        optimizer.zero_grad()
        _loss(head, *train).backward()
        optimizer.step()
        head.eval()
        with torch.no_grad():
            loss = float(_loss(head, *held))
        if loss < least:
            least = loss
            best = epoch
            kept = deepcopy(head.state_dict())
        elif epoch - best >= settings.patience:
            break
    head.load_state_dict(kept)
    return best


def _loss(head: nn.Sequential, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(head(x), labels, weight=1 / labels.bincount())


def _calibrate(gate: Gate, x: Tensor, labels: Tensor) -> Gate:
    """Return the gate with temperature, threshold and figures from labelled features."""
    logits = gate.compute_logits(x).double()
    none = len(gate.names)
    temperature = find_temperature(logits, labels, _TEMPERATURES)
    trust = 1 - torch.softmax(logits / temperature, 1)[:, none]
    task = labels < none
    threshold = min(max(find_threshold(trust[task], trust[~task]), _EDGE), 1 - _EDGE)
    figures = {
        "accuracy": _share(logits[task, :none].argmax(1) == labels[task]),
        "false_abstentions": _share(trust[task] < threshold),
        "abstained": _share(trust[~task] < threshold),
        "prompts": len(labels),
    }
    about = replace(
        gate.about,
        temperature=temperature,
        threshold=threshold,
        figures={**gate.about.figures, **figures},
    )
    return replace(gate, about=about)


def _share(which: Tensor) -> float:
    return float(which.double().mean())
