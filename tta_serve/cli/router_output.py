"""What `tta router` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from tta_serve.cli.options import print_table

if TYPE_CHECKING:
    from adapters.library.entries import Entry
    from router.policies.pareto import Front
    from router.scoring.trained_gate import Gate
    from tta_serve.offline.cocktail import Cocktail
    from tta_serve.offline.compare_features import FeatureRow
    from tta_serve.offline.recombine import Recombination

_FEATURES = (
    "features",
    "template",
    "pooling",
    "scale",
    "experts",
    "with base",
    "AUROC",
    "ms",
    "per ms",
    "",
)


def print_gate(gate: Gate, seconds: float) -> None:
    """Print what a gate is worth on prompts that it was not trained on, and its training's time."""
    table = Table("on prompts not trained on", "all", *gate.about.voices)
    for key, value in gate.about.figures.items():
        by_voice = [f"{own[key]:.3g}" if key in own else "" for own in gate.about.voices.values()]
        table.add_row(key.replace("_", " "), f"{value:.4g}", *by_voice)
    for key, value in {"threshold": gate.about.threshold, "seconds": seconds}.items():
        table.add_row(key, f"{value:.4g}", *[""] * len(gate.about.voices))
    print_table(table)


def print_features(rows: list[FeatureRow], worth: list[bool]) -> None:
    """Print the quality and the cost of each choice of features.

    Args:
        rows: What was measured.
        worth: Whether no faster choice is as good, for each row.
    """
    table = Table(*_FEATURES, title="* no faster choice is as good")
    for row, best in zip(rows, worth, strict=True):
        scale, quality = "standardised" if row.standardised else "raw", row.quality
        shares = (f"{value:.3f}" for value in (quality.experts, quality.with_base, quality.auroc))
        table.add_row(
            row.source,
            row.template,
            row.pooling,
            scale,
            *shares,
            f"{row.ms:.2f}",
            f"{row.per_ms:.2f}",
            "*" * best,
        )
    print_table(table)


def print_decisions(rows: list[dict[str, Any]]) -> None:
    """Print what each policy would do with a prompt, as the server says it."""
    table = Table("policy", "mix", "scores", "floor", "why", "ms", "passes")
    for row in rows:
        best = sorted(row["scores"].items(), key=lambda item: -item[1])
        mix = "\n".join(
            [_write_mix(row["experts"]), *(f"then {_write_mix(own)}" for own in row["then"])]
        )
        scores = "\n".join(f"{name} {score:.3f}" for name, score in best)
        floor = "" if row["floor"] is None else f"{row['floor']:.3f}"
        why = (
            f"{row['reason']} (answered by {row['fallback']})" if row["fallback"] else row["reason"]
        )
        table.add_row(
            row["policy"], mix, scores, floor, why, f"{row['router_ms']:.1f}", str(row["passes"])
        )
    print_table(table)


def print_examples(rows: list[dict[str, Any]]) -> None:
    """Print what policies know of each expert, as the server says it."""
    if rows:
        table = Table("expert", "what policies learn from")
        for row in rows:
            table.add_row(row["expert"], row["says"])
        print_table(table)


def _write_mix(experts: dict[str, Any]) -> str:
    """Return a mix as it stands in a table."""
    return "\n".join(f"{name} {_shorten(c)}" for name, c in experts.items()) or "base"


def _shorten(coefficient: Any) -> str:
    """Return a coefficient as one number, or as the range of its numbers."""
    from adapters.coefficient import from_json, numbers_of

    values = numbers_of(from_json(coefficient))
    if len(values) > 1:
        return f"{min(values):.2f} to {max(values):.2f}"
    return f"{values[0]:.2f}"


def print_entry(entry: Entry, title: str) -> None:
    """Print the coefficients of an entry: of each expert the least, the mean and the most."""
    from adapters.coefficient import numbers_of

    table = Table("expert", "least", "mean", "most", title=title)
    for name, coefficient in entry.coefficients.items():
        values = numbers_of(coefficient)
        table.add_row(
            name,
            *(f"{value:.2f}" for value in (min(values), sum(values) / len(values), max(values))),
        )
    print_table(table)


def print_cocktail(name: str, made: Cocktail) -> None:
    """Print what each model loses, its weight, and what is left of that on the grid."""
    from adapters.coefficient import to_json

    table = Table("model", "loss, nats a token", "weight", "coefficient", title=name)
    for model, loss in made.losses.items():
        on_grid = to_json(made.coefficients[model]) if model in made.coefficients else 0.0
        shown = "" if model == "base" else _shorten(on_grid)
        table.add_row(model, f"{loss:.4g}", f"{made.weights[model]:.4f}", shown)
    print_table(table)


def print_front(front: Front) -> None:
    """Print the entries of a front, and what each of them loses for every task."""
    table = Table(
        "entry", "made for", *front.tasks, title="KL to each expert on its own prompts, nats"
    )
    for point in front.points:
        wanted = ", ".join(
            f"{task} {share:.2f}" for task, share in point.preference.items() if share
        )
        table.add_row(
            point.entry, wanted, *(f"{-point.measured[task]:.3f}" for task in front.tasks)
        )
    table.add_section()
    table.add_row("R2 of the surrogate", "", *(f"{front.r2[task]:.2f}" for task in front.tasks))
    print_table(table)


def print_entry_set(found: Recombination) -> None:
    """Print the entries of a set: what each is made of, and what it loses for every task."""
    from adapters.coefficient import to_json

    made = found.entries
    table = Table(
        "entry", "made of", *made.tasks, title="KL to each expert on its own prompts, nats"
    )
    for one in made.entries:
        used = found.coefficients[one.entry].items()
        parts = "\n".join(f"{name} {_show_halves(to_json(c))}" for name, c in used)
        table.add_row(one.entry, parts, *(f"{-one.measured[task]:.3f}" for task in made.tasks))
    table.add_section()
    table.add_row("error of the surrogate", "", *(f"{found.errors[t]:.3f}" for t in made.tasks))
    print_table(table)


def _show_halves(coefficient: Any) -> str:
    """Return a coefficient with attention and MLP apart, where they differ."""
    if isinstance(coefficient, dict):
        return " ".join(f"{half} {_shorten(value)}" for half, value in coefficient.items())
    return _shorten(coefficient)
