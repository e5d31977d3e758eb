"""The report's tables, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tta_serve.evaluation.figures import Row
from tta_serve.evaluation.intervals import BootstrapEstimate
from tta_serve.evaluation.plan import MEDIUM
from tta_serve.evaluation.questions import EVERYDAY, MIXED, PARAPHRASED, TWO_SKILLS
from tta_serve.reporting.tables import Sheet

_HEADLINES = {
    "default_policy": "the default policy",
    "mixed_over_oracle": "mixed traffic: exact match, of that with the right expert pinned",
    "everyday_abstained": "everyday prompts left to the base",
    "false_abstentions": "prompts of mixed traffic left to the base",
    "corrupted_over_oracle": (
        "corrupted prompts (medium): exact match, of that with the right expert pinned"
    ),
    "two_skill_gain": (
        "two skills: graded score of the best policy, less that of the best expert or static merge"
    ),
    "mix_over_best_single": (
        "two skills: graded score of the best policy, less that of the better expert of each"
    ),
    "voices_right": "strangers' prompts for an expert that got it",
    "sure_and_wrong": "strangers' prompts of whose mix a wrong expert has over 0.9",
    "router_ms_p50": "median time of a decision, ms, one at a time, nothing remembered",
}
_KEPT = (
    "Each merge is served as factors of at most the sum of the experts' ranks; this share of its"
    " energy is left of it. The scale is the coefficient at which it was served, the density, where"
    " it was tuned, the share of entries that its method left."
)
_QUALITY = (
    "Quality is the mean of mixed, paraphrased, corrupted (medium), two skills (graded), everyday"
    " and adversarial prompts; where no expert is wanted, to leave a prompt to the base is right."
    " Of benchmarks alone it is their mean. In brackets: bootstrap intervals of 95 %."
)
_DECISIONS = (
    "Of mixed, paraphrased, adversarial and everyday prompts; precision hangs on how many there are"
    " of each."
)
_TRAFFIC = (
    "An answer differs if it is not the one that the same prompt and mix got in other company,"
    " where rounding can turn a close choice. Of several arms only the first finds no probe"
    " remembered."
)
_TWO_SKILLS = (
    "policy, rival: the best policy, and the best expert or fixed mix or merge; each the best of"
    " several, hence flattered.  over_better: over the better expert of each question's two"
)


def make_sheets(figures: Row) -> list[Sheet]:
    """Return all tables: the headlines, the summary of all arms, then the rest."""
    arms: Mapping[str, Row] = figures["arms"]
    groups = list(dict.fromkeys(group for arm in arms.values() for group in arm["groups"]))
    return [
        _make_headlines(figures),
        _make_summary(arms),
        *(_make_group(arms, group) for group in groups),
        _make_decisions(arms),
        _make_tasks(arms),
        _make_traffic(arms),
        _make_two_skills(figures["two_skills"]),
        _make_merges(figures),
        Sheet("Left out", ("what", "why"), list(figures["skipped"].items())),
    ]


def _make_headlines(figures: Row) -> Sheet:
    rows = [(key, title, format_cell(figures[key])) for key, title in _HEADLINES.items()]
    return Sheet("Headlines", ("field", "what", "value"), rows)


def _make_summary(arms: Mapping[str, Row]) -> Sheet:
    columns = (
        "arm",
        "kind",
        "quality",
        "mixed / oracle",
        "paraphrased / oracle",
        "corrupted / oracle",
        "two skills, graded",
    )
    more = (
        "everyday left",
        "wrongly left",
        "KL, everyday",
        "ms p50",
        "ms p99",
        "passes",
        "verdict",
    )
    groups = (
        (MIXED, "over_oracle"),
        (PARAPHRASED, "over_oracle"),
        (MEDIUM, "over_oracle"),
        (TWO_SKILLS, "graded"),
    )
    keys = (
        "everyday_abstained",
        "false_abstentions",
        "kl_everyday",
        "router_ms_p50",
        "router_ms_p99",
        "passes",
    )
    rows = []
    for name, arm in arms.items():
        scores = (_format_value(arm["groups"].get(group, {}).get(key)) for group, key in groups)
        rest = (_format_value(arm.get(key)) for key in keys)
        rows.append(
            (name, arm["kind"], format_cell(arm.get("quality")), *scores, *rest, arm["verdict"])
        )
    return Sheet("Arms", (*columns, *more), rows, _QUALITY)


def _make_group(arms: Mapping[str, Row], group: str) -> Sheet:
    keys = ("asked", "exact", "graded", "over_oracle", "graded_over_oracle", "right", "abstained")
    there = {name: arm["groups"][group] for name, arm in arms.items() if group in arm["groups"]}
    rows = [(name, *(format_cell(row.get(key)) for key in keys)) for name, row in there.items()]
    titles = (
        "asked",
        "exact",
        "graded",
        "exact / oracle",
        "graded / oracle",
        "right expert",
        "left to the base",
    )
    notes = (
        "Everyday answers are not judged, but whether they are the base's."
        if group == EVERYDAY
        else ""
    )
    return Sheet(f"Slice {group}", ("arm", *titles), rows, notes)


def _make_decisions(arms: Mapping[str, Row]) -> Sheet:
    keys = (
        "routing_accuracy",
        "abstention_precision",
        "abstention_recall",
        "everyday_abstained",
        "false_abstentions",
        "voices_right",
        "voices_left_to_base",
        "sure_and_wrong",
    )
    choosing = {name: arm for name, arm in arms.items() if arm["kind"] in ("policy", "control")}
    rows = [
        (name, *(format_cell(arm[key]) for key in keys), format_cell(arm["fallbacks"]))
        for name, arm in choosing.items()
    ]
    return Sheet(
        "Decisions",
        ("arm", *(key.replace("_", " ") for key in keys), "fallbacks"),
        rows,
        _DECISIONS,
    )


def _make_tasks(arms: Mapping[str, Row]) -> Sheet:
    names = sorted({task for arm in arms.values() for task in arm.get("tasks", ())})
    rows = [
        (name, *(format_cell(arm["tasks"].get(task)) for task in names))
        for name, arm in arms.items()
        if arm.get("tasks")
    ]
    return Sheet("Mixed traffic by task, exact match", ("arm", *names), rows)


def _make_traffic(arms: Mapping[str, Row]) -> Sheet:
    keys = ("asked", "differ", "prefix_cache_hit_rate", "router_ms_p50", "router_ms_p99")
    rows = [
        (name, *(format_cell(row[key]) for key in keys))
        for name, arm in arms.items()
        if (row := arm.get("traffic"))
    ]
    titles = ("requests", "answers that differ", "prefix cache hit rate", "ms p50", "ms p99")
    return Sheet("Traffic", ("arm", *titles), rows, _TRAFFIC)


def _make_two_skills(gain: Row) -> Sheet:
    rows = [
        (key, format_cell(gain[key]))
        for key in ("policy", "rival", "graded", "exact", "over_better")
    ]
    return Sheet("Two skills: what a policy adds", ("", "value"), rows, _TWO_SKILLS)


def _make_merges(figures: Row) -> Sheet:
    scales, densities = figures["merge_scales"], figures["merge_densities"]
    rows = [
        (
            name,
            format_cell(value),
            format_cell(scales.get(name, 1.0)),
            format_cell(densities.get(name)),
        )
        for name, value in figures["merges_kept"].items()
    ]
    return Sheet("Static merges", ("arm", "energy kept", "scale", "density"), rows, _KEPT)


def _format_value(value: Any) -> str:
    """Return a cell without the interval."""
    return format_cell(value.value if isinstance(value, BootstrapEstimate) else value)


def format_cell(value: Any) -> str:
    """Return a cell, with the interval of an estimate; empty where there is no value."""
    if isinstance(value, BootstrapEstimate):
        spread = "" if math.isnan(value.low) else f" ({value.low:.3f}..{value.high:.3f})"
        return f"{format_cell(value.value)}{spread}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
