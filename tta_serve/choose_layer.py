"""From which decoder layer experts should act where the layer's input routes: `tta router choose-layer`.

A higher layer tells prompts apart better, up to some point, and leaves less of an expert that was trained on all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from adapters.deltas import Deltas
from router.centroids import FOLDS, calibrate, fit
from router.policy import RouterError
from router.probing import feature_layer
from tta_serve.compare_features import Labelled, Quality, judge
from tta_serve.early import forms, means
from tta_serve.offline import Offline
from tta_serve.prompts import Prompts
from tta_serve.upper import lost

TOLERANCE = 0.01  # of `with_base`, and of KL in nats
_CANDIDATES = 8

Loss = Mapping[str, float]
Watch = Callable[[list[str]], Iterable[str]]


@dataclass(frozen=True)
class Row:
    """A layer to route at, and what each expert loses that acts from there on (`upper.lost`), by the expert's name."""

    layer: int
    quality: Quality
    losses: Mapping[str, Loss]

    def mean(self, figure: str) -> float:
        """Over experts."""
        return mean(loss[figure] for loss in self.losses.values())

    def worst(self, figure: str) -> str:
        """The expert that has the most of it."""
        return max(self.losses, key=lambda name: self.losses[name][figure])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kl_mean": self.mean("kl_mean")}


@dataclass(frozen=True)
class Choice:
    """The layer recommended, and why."""

    layer: int
    why: str


def candidates(depth: int) -> list[int]:
    """The layer that servers read by default, and eight spread evenly over the lower half of so many, as far as there are."""
    spread = (round(k * (depth // 2) / _CANDIDATES) for k in range(1, _CANDIDATES + 1))
    return sorted({feature_layer(depth), *spread})


def qualities(offline: Offline, layers: Sequence[int], prompts: Prompts, labelled: Labelled, watch: Watch) -> list[Quality]:
    """How well retrieval that is decided inside the pass would route labelled prompts, by each layer's features.

    As a server does it: centroids and threshold of the examples and everyday prompts, bare and as user turns; the labelled
    ones are user turns. A base without a chat template has bare prompts alone. `with_base` is at the threshold. One pass of a
    prompt, in each form, serves all layers. layers: rising. Raises RouterError for fewer than 5 examples of an expert.
    """
    if few := [name for name, own in prompts.experts.items() if len(own) < FOLDS]:
        raise RouterError(f"retrieval needs at least {FOLDS} example prompts an expert; too few for: {', '.join(few)}")
    both = forms(offline)

    def read(texts: list[str], which: Sequence[bool] = both) -> Tensor:
        """[texts, forms, layers, hidden]"""
        return torch.stack([torch.stack([means(offline, t, layers, chat=chat) for chat in which]) for t in watch(texts)])

    known = {name: read(own) for name, own in prompts.experts.items()}
    everyday, asked = read(prompts.everyday), read([prompt for prompt, _ in labelled], both[-1:])
    found = []
    for k in range(len(layers)):
        examples = {name: own[..., k, :] for name, own in known.items()}, everyday[..., k, :]
        model, threshold = fit(*examples), calibrate(*examples).threshold
        found.append(judge(model.scores(asked[:, 0, k]) - threshold, model.names, labelled))
    return found


def losses(
    offline: Offline, layer: int, experts: Mapping[str, tuple[Deltas, Sequence[str]]], tell: Callable[[], None]
) -> dict[str, Loss]:
    """What each expert loses below a layer. experts: with the prompts to measure on, by name   tell: is called after each

    Raises RouterError if no prompt of an expert has two tokens.
    """
    found: dict[str, Loss] = {}
    for name, (deltas, prompts) in experts.items():
        found[name] = lost(deltas, layer, prompts, lambda: offline)
        if "kl_mean" not in found[name]:
            raise RouterError(f"there is nothing to measure {name} on: no prompt that is used of it has two tokens")
        tell()
    return found


def choose(rows: Sequence[Row]) -> Choice:
    """The lowest layer that routes within 0.01 of the best, by `with_base`, and whose mean KL is below 0.01 nats.

    Where there is none, the one whose worse lack of the two is the least, max(best - with_base, KL).
    """
    best = max(row.quality.with_base for row in rows)

    def lack(row: Row) -> tuple[float, float]:
        return best - row.quality.with_base, row.mean("kl_mean")

    for row in sorted(rows, key=lambda row: row.layer):
        behind, kl = lack(row)
        if behind <= TOLERANCE + 1e-9 and kl < TOLERANCE:
            why = f"the lowest that routes within {TOLERANCE} of the best and costs experts less than {TOLERANCE} nats"
            return Choice(row.layer, why)
    row = min(rows, key=lambda row: (max(lack(row)), row.layer))
    behind, kl = lack(row)
    return Choice(
        row.layer,
        f"a compromise: no layer routes within {TOLERANCE} of the best and costs experts less than {TOLERANCE} nats; this one"
        f" routes {behind:.3f} below the best and costs {kl:.3f} nats, most of it {row.worst('kl_mean')}; experts trained"
        f" only from layer {row.layer} upwards lose nothing",
    )


def tables(rows: Sequence[Row], chosen: int) -> list[Table]:
    """By layer, the mean loss over experts; then each expert's by layer."""
    titles = ("layer", "experts", "with base", "AUROC", "energy below", "log-prob.", "KL", "")
    by_layer = Table(*titles, title="Routing at each layer, and what experts that act from there up lose on average, nats")
    for row in rows:
        quality = (f"{value:.3f}" for value in (row.quality.experts, row.quality.with_base, row.quality.auroc))
        loss = (f"{row.mean(figure):.4f}" for figure in ("energy_below", "logprob_change_mean", "kl_mean"))
        by_layer.add_row(str(row.layer), *quality, *loss, "*" * (row.layer == chosen))
    by_expert = Table("expert", *(str(row.layer) for row in rows), title="Energy below, and KL in nats, by layer")
    for name in rows[0].losses:
        own = (row.losses[name] for row in rows)
        by_expert.add_row(name, *(f"{loss['energy_below']:.2f} {loss['kl_mean']:.3f}" for loss in own))
    return [by_layer, by_expert]


def picture(rows: Sequence[Row], chosen: int, file: Path) -> None:
    """Write a PNG: routing and losses against the layer."""
    from matplotlib.figure import Figure

    layers = [row.layer for row in rows]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    routing, loss = figure.subplots(1, 2)
    for name, label in (("experts", "experts"), ("with_base", "with base"), ("auroc", "AUROC")):
        routing.plot(layers, [getattr(row.quality, name) for row in rows], marker=".", label=label)
    for name in rows[0].losses:
        loss.plot(layers, [row.losses[name]["kl_mean"] for row in rows], marker=".", alpha=0.5, label=name)
    loss.plot(layers, [row.mean("kl_mean") for row in rows], color="black", linewidth=2, label="mean")
    loss.set_yscale("symlog", linthresh=TOLERANCE)
    loss.set_ylim(bottom=0)
    routing.set_ylabel("share of prompts; area under the curve")
    loss.set_ylabel("KL to the whole expert, nats")
    for axes in (routing, loss):
        axes.axvline(chosen, color="tab:gray", linestyle=":")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("decoder layer")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file, format="png", dpi=120)
