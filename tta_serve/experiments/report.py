"""The report of an experiment: Markdown, pictures, JSON, all from `results.Report`."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tta_serve.experiments import pictures
from tta_serve.experiments.analysis import LOOKS, analyse
from tta_serve.experiments.control import Stored, weights_key
from tta_serve.experiments.results import MetricFound, Report
from tta_serve.experiments.words import chance, number, percent, spread
from tta_serve.sheets import Sheet
from tta_serve.store import experiments, settings
from tta_serve.store.database import Database

_HOW = """\
- Brackets are confidence sequences: with the probability that is its level, a bracket has the truth in it at every look,
  however many there are (for large samples; none is given before {burn_in} units in an arm). p-values are always valid too.
- Arms' means are at level {level}, each by itself. The {claims} comparisons with {control}, of every treatment in the primary
  and the secondary metrics, are read together: p-values are Holm's, brackets at level {together} (Bonferroni), so that a
  difference may be sure by its p while its bracket just includes 0.
- Ratios and relative differences are by the delta method. A unit counts as one, however many requests it made.
- Guardrails are one-sided at level {level}, each by itself: breached means surely worse than what is tolerated.
- The p-value of the split is for one look. The alarm is set low: with a sound split of two arms, looked at after each of 5,000
  units, it is raised in 2.4 % of experiments.
- `needed`: units per arm that find a true difference like today's with a probability of 80 %; `detectable`: the least
  difference that as many units as there are find so. The brackets are made to be tightest at {target} units per arm."""
_VALUES = "What each arm would have been worth to all units. These brackets are confidence intervals, for one look only."


def report_of(db: Database, name: str, looks: int = LOOKS) -> Report:
    """The report of an experiment as it is now. Raises UnknownError."""
    stored = Stored.read(experiments.get(db, name).definition)
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


def write(report: Report, folder: Path) -> None:
    """report.md with its pictures, and report.json. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(as_json(report), indent=1))
    drawn = pictures.draw(report, folder)
    (folder / "report.md").write_text(as_markdown(report, drawn))


def as_markdown(report: Report, drawn: Mapping[str, str] | None = None) -> str:
    """drawn: titles of pictures that lie beside it, by file name"""
    parts = [f"# Experiment {report.experiment}", "\n".join(f"- {line}" for line in _about(report)), "## Verdict"]
    parts += [_list(report.verdict.words)]
    parts += [f"What is missing:\n\n{_list(report.verdict.missing)}"] if report.verdict.missing else []
    parts += ["## Health", _list(report.health)]
    parts += [f"![{title}]({file})\n\n{title}." for file, title in (drawn or {}).items()]
    parts += [sheet.markdown() for sheet in sheets(report)]
    return "\n\n".join([*parts, "## How", _how(report)]) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    return asdict(report)


def summary(report: Report) -> dict[str, Any]:
    """What a script wants to know."""
    return {
        "experiment": report.experiment,
        "winner": report.verdict.winner,
        "srm_p": report.split.p,
        "stopped_arms": [arm.arm for arm in report.arms if arm.stopped],
        "breached": [[guard.arm, guard.metric] for guard in report.guardrails if guard.breached],
        "units": {arm.arm: arm.units for arm in report.arms},
        "tainted": report.tainted,
        "primary": {c.arm: asdict(c) for c in report.metrics[0].comparisons},
    }


def sheets(report: Report) -> Iterator[Sheet]:
    """The tables: arms, every metric, guardrails, a bandit's values."""
    columns = ("arm", "policy", "share", "units", "requests", "")
    rows = [(a.arm, a.policy, percent(a.share), str(a.units), str(a.requests), "stopped" * a.stopped) for a in report.arms]
    yield Sheet("Arms", columns, rows)
    for metric in report.metrics:
        yield _metric(metric, report.control)
    if report.guardrails:
        rails = [
            (g.metric, g.arm, spread(g.worse_by, sign=True), number(g.tolerated), "BREACHED" if g.breached else "kept")
            for g in report.guardrails
        ]
        yield Sheet("Guardrails", ("metric", "arm", f"worse than {report.control} by", "tolerated", ""), rails)
    if report.values:
        values = [
            (arm, spread(v.ips), spread(v.snips), spread(v.clipped), number(v.effective), spread(v.covered))
            for arm, v in report.values.items()
        ]
        yield Sheet("Values", ("arm", "IPS", "SNIPS", "clipped IPS", "effective units", "covered"), values, _VALUES)


def _metric(metric: MetricFound, control: str) -> Sheet:
    against = {comparison.arm: comparison for comparison in metric.comparisons}
    rows = []
    for arm in metric.arms:
        row = [arm.arm, str(arm.units), str(arm.values), spread(arm.mean)]
        if (c := against.get(arm.arm)) is not None:
            row += [spread(c.difference, sign=True), spread(c.relative, sign=True), chance(c.p), chance(c.p_holm), c.reading]
            row += ["" if c.needed is None else str(c.needed), number(c.detectable)]
        rows.append(row)
    columns = ("arm", "units", "values", "mean", f"less {control}'s", "relative", "p", "p, Holm", "", "needed", "detectable")
    width = max(map(len, rows))
    notes = f"Values are {metric.adjusted}." if metric.adjusted else ""
    title = f"{metric.name}: {metric.role}, a {metric.kind}, {metric.better} is better"
    return Sheet(title, columns[:width], [(*row, *[""] * (width - len(row))) for row in rows], notes)


def _about(report: Report) -> Iterator[str]:
    yield f"units: {report.unit}s; control: {report.control}"
    if report.first is not None and report.last is not None:
        yield f"exposures: {_time(report.first)} to {_time(report.last)}, from version {report.versions[0]} on"
    yield f"made: {_time(report.now)}"


def _how(report: Report) -> str:
    return _HOW.format(
        burn_in=report.burn_in,
        level=number(1 - report.alpha),
        together=number(1 - report.alpha / report.claims),
        claims=report.claims,
        control=report.control,
        target=report.target,
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
