"""The report of an experiment as Markdown, tables and JSON, all from `results.Report`."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tta_serve.experiments.analysis import plots
from tta_serve.experiments.analysis.analyse import LOOKS, analyse
from tta_serve.experiments.analysis.formatting import (
    format_estimate,
    format_number,
    format_p,
    format_percent,
)
from tta_serve.experiments.analysis.results import ArmMean, Comparison, MetricResult, Report
from tta_serve.experiments.design.stored import StoredExperiment, weights_key
from tta_serve.reporting.tables import Sheet
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database

_HOW = """\
- Brackets are confidence sequences: with the probability that is its level, a bracket has the truth
  in it at every look, however many there are (for large samples; none is given before {burn_in}
  units in an arm). p-values are always valid too.
- Arms' means are at level {level}, each by itself. The {claims} comparisons with {control}, of
  every treatment in the primary and the secondary metrics, are read together: p-values are Holm's,
  brackets at level {together} (Bonferroni), so that a difference may be sure by its p while its
  bracket just includes 0.
- Ratios and relative differences are by the delta method. A unit counts as one, however many
  requests it made.
- Guardrails are one-sided at level {level}, each by itself: breached means surely worse than what
  is tolerated.
- The p-value of the split is for one look. The alarm is set low: with a sound split of two arms,
  looked at after each of 5,000 units, it is raised in 2.4 % of experiments.
- `needed`: units per arm that find a true difference like today's with a probability of 80 %;
  `detectable`: the least difference that as many units as there are find so. The brackets are made
  to be tightest at {target} units per arm."""
_VALUES = (
    "What each arm would have been worth to all units. These brackets are confidence intervals, for"
    " one look only."
)


def make_report(db: Database, name: str, looks: int = LOOKS) -> Report:
    """Return the report of an experiment as it is now.

    Raises:
        UnknownError: There is no such experiment.
    """
    stored = StoredExperiment.from_text(experiments.get(db, name).definition)
    weights = settings.get(db, weights_key(name)) if stored.definition.bandit else None
    return analyse(
        db,
        stored.definition,
        stored.span,
        time.time(),
        stopped=stored.stopped,
        weights=weights.value if weights else None,
        looks=looks,
    )


def write_report(report: Report, folder: Path) -> None:
    """Write report.md with its pictures, and report.json.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(to_json(report), indent=1), encoding="utf-8")
    titles = plots.draw_plots(report, folder)
    (folder / "report.md").write_text(to_markdown(report, titles), encoding="utf-8")


def to_markdown(report: Report, pictures: Mapping[str, str] | None = None) -> str:
    """Return the report as Markdown.

    Args:
        pictures: Titles of pictures that lie beside it, by file name.
    """
    verdict = report.verdict
    parts = [
        f"# Experiment {report.experiment}",
        _list(_describe(report)),
        "## Verdict",
        _list(verdict.words),
    ]
    if verdict.missing:
        parts.append(f"What is missing:\n\n{_list(verdict.missing)}")
    parts += ["## Health", _list(report.health)]
    parts += [f"![{title}]({file})\n\n{title}." for file, title in (pictures or {}).items()]
    parts += [sheet.to_markdown() for sheet in make_sheets(report)]
    parts += ["## How", _explain(report)]
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values."""
    return asdict(report)


def summarise(report: Report) -> dict[str, Any]:
    """Return what a script wants to know."""
    return {
        "experiment": report.experiment,
        "winner": report.verdict.winner,
        "srm_p": report.split.p,
        "stopped_arms": [arm.arm for arm in report.arms if arm.stopped],
        "breached": [[guard.arm, guard.metric] for guard in report.guardrails if guard.breached],
        "units": {arm.arm: arm.units for arm in report.arms},
        "tainted": report.tainted,
        "primary": {found.arm: asdict(found) for found in report.metrics[0].comparisons},
    }


def make_sheets(report: Report) -> Iterator[Sheet]:
    """Yield the tables: arms, every metric, guardrails, a bandit's values."""
    yield _tabulate_arms(report)
    for metric in report.metrics:
        yield _tabulate_metric(metric, report.control)
    if report.guardrails:
        yield _tabulate_guardrails(report)
    if report.values:
        yield _tabulate_values(report)


def _tabulate_arms(report: Report) -> Sheet:
    columns = ("arm", "policy", "share", "units", "requests", "")
    rows = [
        (
            arm.arm,
            arm.policy,
            format_percent(arm.share),
            str(arm.units),
            str(arm.requests),
            "stopped" if arm.stopped else "",
        )
        for arm in report.arms
    ]
    return Sheet("Arms", columns, rows)


def _tabulate_metric(metric: MetricResult, control: str) -> Sheet:
    columns = ["arm", "units", "values", "mean"]
    if metric.comparisons:
        columns += [f"less {control}'s", "relative", "p", "p, Holm", "", "needed", "detectable"]
    by_arm = {comparison.arm: comparison for comparison in metric.comparisons}
    rows = []
    for arm in metric.arms:
        row = _list_mean(arm)
        if arm.arm in by_arm:
            row += _list_comparison(by_arm[arm.arm])
        rows.append((*row, *[""] * (len(columns) - len(row))))
    title = f"{metric.name}: {metric.role}, a {metric.kind}, {metric.better} is better"
    notes = f"Values are {metric.adjusted}." if metric.adjusted else ""
    return Sheet(title, tuple(columns), rows, notes)


def _list_mean(arm: ArmMean) -> list[str]:
    return [arm.arm, str(arm.units), str(arm.values), format_estimate(arm.mean)]


def _list_comparison(found: Comparison) -> list[str]:
    return [
        format_estimate(found.difference, sign=True),
        format_estimate(found.relative, sign=True),
        format_p(found.p),
        format_p(found.p_holm),
        found.reading,
        "" if found.needed is None else str(found.needed),
        format_number(found.detectable),
    ]


def _tabulate_guardrails(report: Report) -> Sheet:
    columns = ("metric", "arm", f"worse than {report.control} by", "tolerated", "")
    rows = [
        (
            guardrail.metric,
            guardrail.arm,
            format_estimate(guardrail.worse_by, sign=True),
            format_number(guardrail.tolerated),
            "BREACHED" if guardrail.breached else "kept",
        )
        for guardrail in report.guardrails
    ]
    return Sheet("Guardrails", columns, rows)


def _tabulate_values(report: Report) -> Sheet:
    columns = ("arm", "IPS", "SNIPS", "clipped IPS", "effective units", "covered")
    rows = [
        (
            arm,
            format_estimate(value.ips),
            format_estimate(value.snips),
            format_estimate(value.clipped),
            format_number(value.effective),
            format_estimate(value.covered),
        )
        for arm, value in report.values.items()
    ]
    return Sheet("Values", columns, rows, _VALUES)


def _describe(report: Report) -> Iterator[str]:
    yield f"units: {report.unit}s; control: {report.control}"
    if report.first is not None and report.last is not None:
        yield (
            f"exposures: {_format_time(report.first)} to {_format_time(report.last)}, from version"
            f" {report.versions[0]} on"
        )
    yield f"made: {_format_time(report.now)}"


def _explain(report: Report) -> str:
    return _HOW.format(
        burn_in=report.burn_in,
        level=format_number(1 - report.alpha),
        together=format_number(1 - report.alpha / report.claims),
        claims=report.claims,
        control=report.control,
        target=report.target,
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
