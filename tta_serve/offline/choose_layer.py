"""From which decoder layer on experts should act, where that layer routes inside the pass.

This is `tta router choose-layer`. A higher layer tells prompts apart better, up to some point, and
leaves less of an expert that was trained on all layers.
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
from router.errors import RouterError
from router.probing import feature_layer
from router.scoring.centroids import FOLDS, calibrate, fit
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.compare_features import Labelled, Quality, judge
from tta_serve.offline.features import list_forms, read_means
from tta_serve.offline.labelled_prompts import Prompts
from tta_serve.offline.layer_loss import measure_loss

TOLERANCE = 0.01
"""Of `with_base`, and of KL in nats."""
_CANDIDATES = 8

Loss = Mapping[str, float]
"""What an expert loses, by the figures of `measure_loss`."""
Watch = Callable[[list[str]], Iterable[str]]
"""Hands prompts on, for a progress bar."""


@dataclass(frozen=True)
class LayerRow:
    """A layer to route at: how well that routes, and what each expert loses."""

    layer: int
    """The layer."""
    quality: Quality
    """Of routing by its input."""
    losses: Mapping[str, Loss]
    """By expert, `measure_loss` of one that acts from there on."""

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over experts."""
        return mean(loss[figure] for loss in self.losses.values())

    def worst(self, figure: str) -> str:
        """Return the expert that has the most of a figure."""
        return max(self.losses, key=lambda name: self.losses[name][figure])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kl_mean": self.mean("kl_mean")}


@dataclass(frozen=True)
class LayerChoice:
    """The layer recommended, and why."""

    layer: int
    """The layer."""
    why: str
    """The reason, for a reader."""


def list_candidates(depth: int) -> list[int]:
    """Return layers to compare, rising.

    They are the one that servers read by default, and eight spread evenly over the lower half, as
    far as there are.

    Args:
        depth: How many layers there are.
    """
    spread = (round(k * (depth // 2) / _CANDIDATES) for k in range(1, _CANDIDATES + 1))
    return sorted({feature_layer(depth), *spread})


def judge_layers(
    plain: PlainModel, layers: Sequence[int], prompts: Prompts, labelled: Labelled, watch: Watch
) -> list[Quality]:
    """Judge each layer: how well would retrieval inside the pass route by its features?

    As a server does it: centroids and threshold of the examples and everyday prompts, bare and as
    user turns; the labelled ones are user turns. A base without a chat template has bare prompts
    alone. `with_base` is at the threshold. One pass of a prompt, in each form, serves all layers.

    Args:
        plain: The base.
        layers: Rising.
        prompts: What routing is learned from.
        labelled: What it is judged on.
        watch: Hands prompts on, for a progress bar.

    Raises:
        RouterError: An expert has fewer than 5 examples.
    """
    if few := [name for name, own in prompts.experts.items() if len(own) < FOLDS]:
        raise RouterError(
            f"retrieval needs at least {FOLDS} example prompts an expert; too few for:"
            f" {', '.join(few)}"
        )
    both = list_forms(plain)

    def read_one(text: str, which: Sequence[bool]) -> Tensor:
        return torch.stack([read_means(plain, text, layers, chat=chat) for chat in which])

    def read(texts: list[str], which: Sequence[bool] = both) -> Tensor:
        """Return [texts, forms, layers, hidden]."""
        return torch.stack([read_one(text, which) for text in watch(texts)])

    # Read everything once, for all layers.
    known = {name: read(own) for name, own in prompts.experts.items()}
    everyday = read(prompts.everyday)
    asked = read([prompt for prompt, _ in labelled], both[-1:])

    # Judge layer by layer.
    found = []
    for k in range(len(layers)):
        examples = {name: own[..., k, :] for name, own in known.items()}, everyday[..., k, :]
        model = fit(*examples)
        threshold = calibrate(*examples).threshold
        found.append(judge(model.score(asked[:, 0, k]) - threshold, model.names, labelled))
    return found


def measure_losses(
    plain: PlainModel,
    layer: int,
    experts: Mapping[str, tuple[Deltas, Sequence[str]]],
    tell: Callable[[], None],
) -> dict[str, Loss]:
    """Measure what each expert loses below a layer.

    Args:
        plain: The base.
        layer: The lowest layer that stays.
        experts: With the prompts to measure on, by name.
        tell: Is called after each expert.

    Raises:
        RouterError: No prompt of an expert has two tokens.
    """
    found: dict[str, Loss] = {}
    for name, (deltas, prompts) in experts.items():
        found[name] = measure_loss(deltas, layer, prompts, lambda: plain)
        if "kl_mean" not in found[name]:
            raise RouterError(
                f"there is nothing to measure {name} on: no prompt that is used of it has two"
                " tokens"
            )
        tell()
    return found


def choose_layer(rows: Sequence[LayerRow]) -> LayerChoice:
    """Choose the lowest layer that routes almost as well as the best and costs almost nothing.

    That is within 0.01 of the best by `with_base`, at a mean KL below 0.01 nats. Where there is
    none, it is the layer whose worse lack of the two is the least, max(best - with_base, KL).
    """
    best = max(row.quality.with_base for row in rows)

    def lack(row: LayerRow) -> tuple[float, float]:
        return best - row.quality.with_base, row.mean("kl_mean")

    for row in sorted(rows, key=lambda row: row.layer):
        behind, kl = lack(row)
        if behind <= TOLERANCE + 1e-9 and kl < TOLERANCE:
            return LayerChoice(
                row.layer,
                f"the lowest that routes within {TOLERANCE} of the best and costs experts less than"
                f" {TOLERANCE} nats",
            )

    row = min(rows, key=lambda row: (max(lack(row)), row.layer))
    behind, kl = lack(row)
    return LayerChoice(
        row.layer,
        f"a compromise: no layer routes within {TOLERANCE} of the best and costs experts less than"
        f" {TOLERANCE} nats; this one routes {behind:.3f} below the best and costs {kl:.3f} nats,"
        f" most of it {row.worst('kl_mean')}; experts trained only from layer {row.layer} upwards"
        " lose nothing",
    )


def make_tables(rows: Sequence[LayerRow], chosen: int) -> list[Table]:
    """Make two tables: the mean loss over experts by layer, and each expert's by layer.

    Args:
        rows: By layer.
        chosen: The layer to mark.
    """
    titles = ("layer", "experts", "with base", "AUROC", "energy below", "log-prob.", "KL", "")
    by_layer = Table(
        *titles,
        title=(
            "Routing at each layer, and what experts that act from there up lose on average, nats"
        ),
    )
    for row in rows:
        quality = (
            f"{value:.3f}"
            for value in (row.quality.experts, row.quality.with_base, row.quality.auroc)
        )
        loss = (
            f"{row.mean(figure):.4f}"
            for figure in ("energy_below", "logprob_change_mean", "kl_mean")
        )
        by_layer.add_row(str(row.layer), *quality, *loss, "*" * (row.layer == chosen))
    by_expert = Table(
        "expert", *(str(row.layer) for row in rows), title="Energy below, and KL in nats, by layer"
    )
    for name in rows[0].losses:
        own = (row.losses[name] for row in rows)
        by_expert.add_row(
            name, *(f"{loss['energy_below']:.2f} {loss['kl_mean']:.3f}" for loss in own)
        )
    return [by_layer, by_expert]


def draw_layers(rows: Sequence[LayerRow], chosen: int, file: Path) -> None:
    """Write a PNG: routing and losses against the layer.

    Args:
        rows: By layer.
        chosen: The layer to mark.
        file: Where to.
    """
    from matplotlib.figure import Figure

    layers = [row.layer for row in rows]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    routing, loss = figure.subplots(1, 2)
    for name, label in (("experts", "experts"), ("with_base", "with base"), ("auroc", "AUROC")):
        routing.plot(layers, [getattr(row.quality, name) for row in rows], marker=".", label=label)
    for name in rows[0].losses:
        loss.plot(
            layers, [row.losses[name]["kl_mean"] for row in rows], marker=".", alpha=0.5, label=name
        )
    loss.plot(
        layers, [row.mean("kl_mean") for row in rows], color="black", linewidth=2, label="mean"
    )
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
