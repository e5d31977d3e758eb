"""The report, the terminal's tables and the line of JSON, all from `metrics.compute_figures`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tta_serve.evaluation.figures import Row
from tta_serve.evaluation.intervals import BootstrapEstimate
from tta_serve.evaluation.results import Results
from tta_serve.evaluation.tables import make_sheets
from tta_serve.reporting.tables import Sheet

PICTURES = {
    "scores.png": (
        "Exact match on every slice; of two skills the graded score, of everyday prompts the share"
        " left to the base"
    ),
    "quality.png": "Quality against the time of a decision",
    "confusion.png": "What the default policy chose",
}
_HOW = """\
- Answers are greedy, a matter of prompt and mix alone: each is asked for once, whichever arms share
  it. The arms under *Traffic* are scored on mixed prompts by what they answered there, sixteen at a
  time, in random order.
- Decisions are those of `POST /admin/policies/explain`, four prompts at a time; a policy that is
  late is asked once more, alone. Their time is that of one at a time, on mixed prompts that no
  policy has seen, as a tag is added to each; passes are the rows of the engine that it took.
- `oracle` is the right expert pinned, one of two after the other, and the base where no expert is
  wanted. Ratios to it are of sums over the same questions. Benchmarks name no expert: it is not
  asked them.
- The slice `removed` is decided while the right expert is unloaded, by what chooses by the prompt;
  right is the base.
- KL to the base: the mean of log p_base - log p_arm over the tokens of an answer that the base
  gives at temperature 1, of at most 24 tokens, one for each everyday prompt. Its expectation is
  KL(p_base || p_arm) of the next token; a prompt that is left to the base has exactly 0.
- Intervals are percentile bootstrap intervals of 95 % over questions. They do not say how much
  another training of the experts would change, and where every answer is right they have no width.
- A policy is *worth its time* if it is better in quality than every faster one, by an interval of
  the paired difference that lies above 0; of two as fast, the better one is.
"""


def to_markdown(figures: Row) -> str:
    """Return the report; its pictures lie beside it."""
    about = [f"- {key}: {value}" for key, value in figures["about"].items()]
    tables = [sheet.to_markdown() for sheet in make_sheets(figures) if sheet.rows]
    pictures = [f"![{title}]({file})\n\n{title}." for file, title in PICTURES.items()]
    return "\n\n".join(
        ["# Evaluation", "\n".join(about), *tables[:2], *pictures, *tables[2:], "## How", _HOW]
    )


def make_main_sheets(figures: Row) -> list[Sheet]:
    """Return the tables for the terminal, the headlines and the summary."""
    return make_sheets(figures)[:2]


def list_answers(results: Results) -> Iterator[Row]:
    """Yield every answer of every arm, with the mix and the score."""
    for name, record in results.records.items():
        for number, cell in sorted(record.answers.items()):
            question = results.suite.questions[number]
            asked = {
                "slice": question.group,
                "prompt": question.prompt,
                "task": question.task,
                "want": question.want,
            }
            score = cell.score and {"exact": cell.score.exact, "graded": cell.score.graded}
            yield {
                "arm": name,
                **asked,
                "experts": dict(cell.experts),
                "answer": cell.answer,
                "score": score,
            }


def to_plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Numbers have four significant digits, what has no value is null, an interval is
    [value, low, high].
    """
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def make_last_line(figures: Row) -> Row:
    """Return the headlines' fields as single numbers, then everything else.

    The intervals of the fields lie beside them, under `intervals`.
    """
    single = {
        key: value.value if isinstance(value, BootstrapEstimate) else value
        for key, value in figures.items()
    }
    spreads = {
        key: list(value) for key, value in figures.items() if isinstance(value, BootstrapEstimate)
    }
    line: Row = to_plain({**single, "intervals": spreads})
    return line
