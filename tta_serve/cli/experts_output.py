"""What `tta experts` prints and draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from rich.table import Table

from tta_serve.cli.options import console, print_json, print_table, printable

if TYPE_CHECKING:
    from adapters.library.export import Rounding
    from adapters.library.manifest import Manifest
    from adapters.merge.interference import Interference

_INTERFERENCE = {
    "cosine": "cosine",
    "conflict": "signs differ",
    "conflict_mass": "by size",
    "overlap_in": "inputs",
    "overlap_out": "outputs",
    "norm_a": "|a|",
    "norm_b": "|b|",
}
"""The columns of `print_interference`: fields of `Interference`, and their titles."""


def print_library(root: Path) -> None:
    """Print the experts of a library, one a row."""
    from adapters.library.listing import list_experts

    table = Table("expert", "version", "form", "rank", "size", "from", "examples", "licence")
    listing = list_experts(root)
    for listed in listing.experts:
        table.add_row(
            listed.name,
            str(listed.version),
            listed.form,
            _span(listed.ranks),
            _megabytes(listed.size),
            listed.kind,
            str(listed.examples),
            printable(listed.licence or ""),
        )
    print_table(table)
    for name, reason in listing.problems.items():
        console.print(f"{printable(name)} cannot be used: {printable(reason)}")


def print_library_json(root: Path) -> None:
    """Print the manifests of a library's experts, and the base's digest."""
    from adapters.library.library import Library

    opened = Library.open(root)
    manifests, problems = opened.read_manifests()
    found = {"base": opened.base_digest, "experts": manifests, "problems": problems}
    print_json(found)


def print_expert(root: Path, name: str, *, as_json: bool) -> None:
    """Print the manifest of an expert."""
    from adapters.library.library import Library
    from adapters.library.manifest import to_json

    manifest = Library.open(root).manifest(name)
    if as_json:
        print_json(manifest)
        return

    for key in ("digest", "base", "created", "licence", "description", "scores", "source"):
        value = getattr(manifest, key)
        text = printable(value) if isinstance(value, str) else " ".join(to_json(value).split())
        console.print(f"{key:<12}{text}")
    console.print(f"{'examples':<12}{len(manifest.examples)}")
    if manifest.alone:
        console.print(f"{'use':<12}alone: in no mix with others, nor in a merge")
    if manifest.twin:
        beside = manifest.twin.shared
        said = "on beside its exclusive parts" if beside == name else f"on beside {beside}"
        console.print(f"{'twin':<12}{manifest.twin.role}, {said}")
    print_report(manifest)


def print_verified(found: Mapping[str, str], *, as_json: bool) -> None:
    """Print what `tta experts verify` found, by name."""
    if as_json:
        print_json(found)
        return
    table = Table("expert", "weights")
    for name, said in found.items():
        table.add_row(name, said)
    print_table(table)


def print_report(manifest: Manifest) -> None:
    """Print what a form kept of an expert and what it dropped, and the expert's scores."""
    report = manifest.report
    sizes = f"{_megabytes(report.bytes_before)} -> {_megabytes(report.bytes_after)}"
    ranks = f", rank {_span(report.ranks.values())}" if report.ranks else ""
    console.print(f"{manifest.name}, version {manifest.version}: {manifest.form}{ranks}, {sizes}")
    if report.kept:
        print_table(_tabulate_kept(report.kept, report.dropped))
    for part, found in report.parts.items():
        console.print(
            f"{part:<12}has {_share(found.energy)} of the change; kept of it: {_share(found.kept)}"
        )
    if report.unserved:
        console.print("Kept, and left out where slots serve it:")
    for reason, weights in _group_by_reason(report.unserved).items():
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        console.print(f"  {printable(weights[0])}{more}: {printable(reason)}")
    for score, value in manifest.scores.items():
        console.print(f"{score:<28}{value:.4g}")
    for note in manifest.source.notes:
        console.print(f"Note: {printable(note)}.")


def print_rounding(left: Rounding) -> None:
    """Print what rounding into the base's dtypes left of a change in a checkpoint."""
    shares = ", ".join(f"{kind} {_share(value)}" for kind, value in left.kept.items())
    console.print(f"of the change, rounded into the base: {_share(left.total)} kept ({shares})")


def print_methods() -> None:
    """Print the methods of `tta experts merge`, and why others are not among them."""
    from adapters.merge.registry import METHODS, NOT_IMPLEMENTED

    table = Table("method", "options", "needs", "source")
    for name, method in METHODS.items():
        options = (
            f"{option.name}={option.wanted if option.default is None else option.default}"
            for option in method.options.values()
        )
        needs = sorted(method.needs & {"base", "grams", "fishers"})
        table.add_row(name, "\n".join(options), ", ".join(needs), method.source)
    for name, reason in NOT_IMPLEMENTED.items():
        table.add_row(name, "", "", f"not implemented: {reason}")
    print_table(table)


def print_methods_json() -> None:
    """Print the methods of `tta experts merge` as one JSON object."""
    from adapters.merge.registry import METHODS, NOT_IMPLEMENTED

    rows = {
        name: {
            "source": method.source,
            "needs": sorted(method.needs),
            "at_least": method.at_least,
            "at_most": method.at_most,
            "options": {
                option.name: {"default": option.default, "wanted": option.wanted}
                for option in method.options.values()
            },
        }
        for name, method in METHODS.items()
    }
    print_json({"methods": rows, "not_implemented": NOT_IMPLEMENTED})


def print_interference(rows: Sequence[Interference]) -> None:
    """Print how two experts interfere, as means over each type of module and over all weights."""
    from adapters.files.delta_forms import type_of

    groups = defaultdict[str, list["Interference"]](list)
    for row in rows:
        groups[type_of(row.weight)].append(row)

    title = "Share of entries whose signs differ; overlap of what they read and write"
    table = Table("type", "", *_INTERFERENCE.values(), title=title)
    for kind, group in [*groups.items(), ("all", list(rows))]:
        table.add_row(kind, str(len(group)), *(_mean(group, column) for column in _INTERFERENCE))
    print_table(table)


def draw_interference(rows: Sequence[Interference], file: Path) -> None:
    """Write a picture of how two experts interfere, and say where it is."""
    from tta_serve.reporting import plots

    plots.draw_interference(rows, file)
    console.print(f"The picture is {file}")


def _tabulate_kept(kept: Mapping[str, float], dropped: Mapping[str, float]) -> Table:
    """Tabulate the share of the energy that is kept of each type of module, and what is dropped."""
    from adapters.files.delta_forms import type_of

    lost = defaultdict[str, list[float]](list)
    for weight, energy in dropped.items():
        lost[type_of(weight)].append(energy)

    table = Table("type of module", "energy kept", "dropped: weights", "dropped: energy")
    for kind, share in kept.items():
        own = lost[kind]
        cells = (str(len(own)), f"{sum(own):.3g}") if own else ("", "")
        table.add_row(kind, f"{share:.4f}", *cells)
    return table


def _group_by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the weights that each reason is given for."""
    found = defaultdict[str, list[str]](list)
    for weight, reason in reasons.items():
        found[reason].append(weight)
    return found


def _share(value: float) -> str:
    """Write a share so that what is not quite all of it does not look so."""
    return f"{min(value, 0.9999):.4f}" if value < 1 - 1e-6 else "1.0000"


def _mean(rows: Sequence[Interference], field: str) -> str:
    values = [value for row in rows if (value := getattr(row, field)) is not None]
    return f"{mean(values):.3g}" if values else ""


def _span(ranks: Collection[int]) -> str:
    low, high = min(ranks, default=0), max(ranks, default=0)
    return (str(low) if low == high else f"{low} to {high}") if high else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
