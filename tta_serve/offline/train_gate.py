"""How a gate is trained, and how it is calibrated by prompts that it was not trained on.

A linear head is a softmax regression, and has one best fit:

    loss = mean over classes of the mean over their prompts of ln(1 / p[class]) + penalty ||W||^2

A *voice* is a source of prompts: a person, a generator, a log. Prompts of one voice are alike in
ways that have nothing to do with the task, so a gate is judged, and its temperature and threshold
are set, on voices that were left out of its training, one at a time, and on fifths of the other
prompts. Prompts that want the work of two experts teach a second head how such prompts differ from
all others, and nothing else. The gate itself is `router.scoring.trained_gate`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from router.errors import RouterError
from router.scoring.centroids import FOLDS, find_temperature, find_threshold, split_fold
from router.scoring.trained_gate import Gate, GateRecord, make_head
from tta_serve.offline.gate_figures import measure_gate, measure_several

SAMPLES_NAME = "prompts"
"""What the prompts of no voice are called among the voices."""
_TEMPERATURES = torch.logspace(-1.3, 1.3, 53)
_EDGE = 1e-6
_MOST_STEPS = 300


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
    both: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    """Of prompts that want the work of two experts, by their names."""

    def split(self, fold: int) -> tuple["GateSamples", "GateSamples"]:
        """Return four fifths of the prompts, and the fifth of this number."""
        experts = {name: split_fold(f, fold) for name, f in self.experts.items()}
        everyday = split_fold(self.everyday, fold)
        both = {names: split_fold(f, fold) for names, f in self.both.items()}
        rest, held = (
            GateSamples(
                {name: parts[k] for name, parts in experts.items()},
                everyday[k],
                {names: parts[k] for names, parts in both.items()},
            )
            for k in (0, 1)
        )
        return rest, held

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return features [rows, d] and labels [rows].

        Labels are the experts in the order of their names, everyday last.
        """
        classes = [*(self.experts[name] for name in sorted(self.experts)), self.everyday]
        parts = [features.flatten(0, -2) for features in classes]
        labels = [torch.full((len(part),), k) for k, part in enumerate(parts)]
        return torch.cat(parts), torch.cat(labels)

    def rows_of_both(self) -> Tensor:
        """Return the features of prompts that want two experts, [rows, d]."""
        parts = [features.flatten(0, -2) for features in self.both.values()]
        return torch.cat(parts) if parts else self.everyday.new_zeros(0, self.everyday.shape[-1])

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
    penalty: float = 3e-3
    """Of the squares of the weights."""
    seed: int = 0
    """Of the weights that a hidden layer begins with."""


def train(  # noqa: PLR0913 - one part each
    digests: Mapping[str, str],
    layer: int,
    samples: GateSamples,
    validation: GateSamples | None = None,
    voices: Mapping[str, GateSamples] | None = None,
    settings: GateSettings = GateSettings(),
) -> Gate:
    """Train the gate of some experts; the same arguments give the same gate.

    Args:
        digests: The digests of the experts' weights, by name.
        layer: The decoder layer whose input the features are.
        samples: What to train on, of no voice or of many.
        validation: What to calibrate by, in place of what is left out.
        voices: More to train on, by the voice's name. Each must have prompts of every expert, and
            everyday ones.
        settings: How to train.

    Raises:
        RouterError: There are fewer than 5 prompts of an expert or everyday, or none of them in the
            validation or in a voice.
    """
    voices = voices or {}
    samples.check(digests, FOLDS, "training")
    for name, voice in voices.items():
        voice.check(digests, 1, f"the voice {name}:")
    about = GateRecord(digests, layer, settings.hidden, temperature=1.0, threshold=0.5, figures={})
    gate = fit_gate(about, [samples, *voices.values()], settings)
    if validation is not None:
        validation.check(digests, 1, "validating")
        return _calibrate(gate, {"": [_Judged.of(gate, validation)]})
    judged = defaultdict[str, list[_Judged]](list)
    for name, rest, held in _leave_out(samples, voices):
        judged[name].append(_Judged.of(fit_gate(about, rest, settings), held))
    return _calibrate(gate, judged)


class _Judged(NamedTuple):
    """What a gate says of prompts that it was not trained on."""

    logits: Tensor
    """[rows, K + 1]."""
    labels: Tensor
    """[rows]."""
    several: Tensor
    """[rows], the logits that they want several experts."""
    of_both: Tensor
    """[others], the same of prompts that do want two."""

    @classmethod
    def of(cls, gate: Gate, samples: GateSamples) -> "_Judged":
        x, labels = samples.rows()
        several, of_both = map(gate.compute_several, (x, samples.rows_of_both()))
        return cls(gate.compute_logits(x).double(), labels, several, of_both)

    @classmethod
    def join(cls, parts: Iterable["_Judged"]) -> "_Judged":
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _leave_out(
    samples: GateSamples, voices: Mapping[str, GateSamples]
) -> Iterator[tuple[str, list[GateSamples], GateSamples]]:
    """Yield a voice's name, all that is left without it, and it; fifths of the samples likewise."""
    for name, voice in voices.items():
        yield name, [samples, *(v for other, v in voices.items() if other != name)], voice
    for fold in range(FOLDS):
        rest, held = samples.split(fold)
        yield SAMPLES_NAME, [rest, *voices.values()], held


def fit_gate(about: GateRecord, voices: list[GateSamples], settings: GateSettings) -> Gate:
    """Fit the heads to some voices; the gate is not calibrated.

    Args:
        about: The experts, and the layer.
        voices: What to fit to.
        settings: How.
    """
    x, labels = (
        torch.cat(parts) for parts in zip(*(voice.rows() for voice in voices), strict=True)
    )
    mean = x.mean(0)
    std = x.std(0).clamp_min(1e-6)
    both = torch.cat([voice.rows_of_both() for voice in voices])
    z = (torch.cat([x, both]) - mean) / std
    gate = Gate(about, mean, std, _fit_head(z[: len(x)], labels, settings))
    if not len(both):
        return gate

    wants_two = torch.arange(len(z)) >= len(x)
    (linear,) = _fit_head(z, wants_two.long(), replace(settings, hidden=0))
    assert isinstance(linear, nn.Linear)
    one, two = torch.cat([linear.weight, linear.bias.unsqueeze(1)], dim=1).detach()
    return replace(gate, several=two - one)


def _fit_head(z: Tensor, labels: Tensor, settings: GateSettings) -> nn.Sequential:
    """Fit a head to rows of standardised features, [rows, d], and their classes, [rows]."""
    z = z.double()
    weights = 1 / labels.bincount().double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = make_head(z.shape[1], settings.hidden, len(weights)).double()
    matrices = [p for p in head.parameters() if p.dim() == 2]
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=_MOST_STEPS, line_search_fn="strong_wolfe"
    )

    def measure_loss() -> Tensor:
        optimizer.zero_grad()
        fit = cross_entropy(head(z), labels, weight=weights)
        loss = fit + settings.penalty * sum(matrix.square().sum() for matrix in matrices)
        loss.backward()
        return loss

    optimizer.step(measure_loss)
    return nn.Sequential(*head.float()).eval()


def _calibrate(gate: Gate, judged: Mapping[str, list[_Judged]]) -> Gate:
    """Return the gate with temperature, threshold and figures.

    Args:
        gate: The gate.
        judged: By voice; where there are several, each has figures of its own.
    """
    by_voice = {name: _Judged.join(parts) for name, parts in judged.items()}
    logits, labels, several, of_both = _Judged.join(by_voice.values())
    none = len(gate.names)
    temperature = find_temperature(logits, labels, _TEMPERATURES)
    trust = 1 - torch.softmax(logits / temperature, 1)[:, none]
    task = labels < none
    threshold = min(max(find_threshold(trust[task], trust[~task]), _EDGE), 1 - _EDGE)

    def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
        return measure_gate(logits / temperature, labels, threshold)

    voices = {n: measure(own.logits, own.labels) for n, own in by_voice.items()}
    about = replace(
        gate.about,
        temperature=temperature,
        threshold=threshold,
        figures=measure(logits, labels) | measure_several(several[task], of_both),
        voices=voices if len(voices) > 1 else {},
    )
    return replace(gate, about=about)
