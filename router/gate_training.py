"""How a gate is trained: AdamW on all prompts at once, up to the least validation loss; calibrated on validation too."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from router.centroids import FOLDS, best_temperature, best_threshold, parted
from router.gate_model import Gate, Record, make_head
from router.policy import RouterError

_TEMPERATURES = torch.logspace(-1.3, 1.3, 53)
_EDGE = 1e-6


@dataclass(frozen=True)
class Samples:
    """Features of prompts. experts: by name, [n_k, d]   everyday: of prompts that no expert should answer, [n, d]

    Or [n_k, forms, d], [n, forms, d] of prompts that were read in several forms, each a row for training and for the figures.
    """

    experts: Mapping[str, Tensor]
    everyday: Tensor

    def split(self) -> tuple["Samples", "Samples"]:
        """Four fifths of the prompts to train on and one to hold out."""
        experts, everyday = {name: parted(f, 0) for name, f in self.experts.items()}, parted(self.everyday, 0)
        train, held = (Samples({name: parts[k] for name, parts in experts.items()}, everyday[k]) for k in (0, 1))
        return train, held

    def rows(self) -> tuple[Tensor, Tensor]:
        """Returns features [rows, d] and labels [rows]: experts in the order of their names, everyday last."""
        parts = [part.flatten(0, -2) for part in (*(self.experts[name] for name in sorted(self.experts)), self.everyday)]
        return torch.cat(parts), torch.cat([torch.full((len(part),), k) for k, part in enumerate(parts)])

    def check(self, names: Mapping[str, str], least: int, use: str) -> None:
        """Raises RouterError unless there are `least` prompts of every expert and of the everyday ones."""
        counts = {**{name: len(self.experts.get(name, ())) for name in sorted(names)}, "everyday": len(self.everyday)}
        few = [f"{name} has {count}" for name, count in counts.items() if count < least]
        if few:
            raise RouterError(
                f"{use} a gate takes at least {least} prompts of each expert and everyday ones: {', '.join(few)}"
            )


@dataclass(frozen=True)
class Settings:
    """hidden: width of the hidden layer, 0 for none   patience: epochs without a lower validation loss that end it"""

    hidden: int = 0
    dropout: float = 0.1
    lr: float = 3e-3
    weight_decay: float = 0.01
    epochs: int = 1000
    patience: int = 50
    seed: int = 0


def train(
    digests: Mapping[str, str],
    layer: int,
    samples: Samples,
    validation: Samples | None = None,
    settings: Settings = Settings(),
) -> Gate:
    """The gate of the experts in `digests`. The same arguments give the same gate.

    layer: whose input the features are   validation: what ends the training, and sets temperature and threshold; without it
    a fifth of the samples. Classes count alike in the loss, however many prompts each has.

    Raises RouterError for fewer than 5 prompts of an expert or everyday, or none of them in the validation.
    """
    samples.check(digests, FOLDS, "training")
    if validation is None:
        samples, validation = samples.split()
    validation.check(digests, 1, "validating")
    (x, labels), (held, held_labels) = samples.rows(), validation.rows()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = make_head(x.shape[1], settings.hidden, len(digests) + 1, settings.dropout)
        epochs = _descend(head, ((x - mean) / std, labels), ((held - mean) / std, held_labels), settings)
    about = Record(digests, layer, settings.hidden, temperature=1.0, threshold=0.5, figures={"epochs": epochs})
    return _calibrated(Gate(about, mean, std, head), held, held_labels)


def _descend(head: nn.Sequential, train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], settings: Settings) -> int:
    """Train the head and leave it with the weights of its best epoch, whose number is returned."""
    optimizer = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=settings.weight_decay)
    least, best, kept = float("inf"), 0, deepcopy(head.state_dict())
    for epoch in range(1, settings.epochs + 1):
        head.train()
        optimizer.zero_grad()
        _loss(head, *train).backward()
        optimizer.step()
        head.eval()
        with torch.no_grad():
            loss = float(_loss(head, *held))
        if loss < least:
            least, best, kept = loss, epoch, deepcopy(head.state_dict())
        elif epoch - best >= settings.patience:
            break
    head.load_state_dict(kept)
    return best


def _loss(head: nn.Sequential, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(head(x), labels, weight=1 / labels.bincount())


def _calibrated(gate: Gate, x: Tensor, labels: Tensor) -> Gate:
    """The gate with temperature and threshold from labelled features, and what it then makes of them."""
    logits, none = gate.logits(x).double(), len(gate.names)
    temperature = best_temperature(logits, labels, _TEMPERATURES)
    trust = 1 - torch.softmax(logits / temperature, 1)[:, none]
    task = labels < none
    threshold = min(max(best_threshold(trust[task], trust[~task]), _EDGE), 1 - _EDGE)
    figures = {
        "accuracy": _share(logits[task, :none].argmax(1) == labels[task]),
        "false_abstentions": _share(trust[task] < threshold),
        "abstained": _share(trust[~task] < threshold),
        "prompts": len(labels),
    }
    about = replace(gate.about, temperature=temperature, threshold=threshold, figures={**gate.about.figures, **figures})
    return replace(gate, about=about)


def _share(which: Tensor) -> float:
    return float(which.double().mean())
