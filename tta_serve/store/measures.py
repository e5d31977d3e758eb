"""What an analysis reads of the logs, as parts of SQL and as streams of rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Double, FromClause, Select, and_, case, cast

from tta_serve.store.database import Database
from tta_serve.store.records import Span
from tta_serve.store.schema import exposures, outcomes

_AT_ONCE = 1000  # rows in memory
_e = exposures.c

BUILT_IN: Mapping[str, ColumnElement[float | None]] = {
    "total_ms": _e.total_ms,
    "ttft_ms": _e.ttft_ms,
    "router_ms": _e.router_ms,
    "completion_tokens": cast(_e.completion_tokens, Double),
    "error": case((_e.outcome == "error", 1.0), else_=0.0),
    "abstained": case((_e.abstained, 1.0), else_=0.0),
}
"""The metrics that the server measures itself, each as an expression on an exposure."""


def match_span(span: Span) -> ColumnElement[bool]:
    """Return the condition that an exposure is one of a span's."""
    last = [] if span.last is None else [_e.version <= span.last]
    return and_(_e.experiment == span.experiment, _e.version >= span.first, *last)


def select_metric(metric: str) -> tuple[ColumnElement[float | None], FromClause]:
    """Return a metric's value of an exposure, and what to select it from.

    Args:
        metric: One of BUILT_IN, or the name of outcomes. NULL is the value of a request without.
    """
    if metric in BUILT_IN:
        return BUILT_IN[metric], exposures
    of_request = and_(outcomes.c.request_id == _e.request_id, outcomes.c.metric == metric)
    return outcomes.c.value, exposures.outerjoin(outcomes, of_request)


def stream_rows(db: Database, rows: Select[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows; a stream that is left gives its connection back."""
    with (
        db.read() as connection,
        connection.execution_options(yield_per=_AT_ONCE).execute(rows) as found,
    ):
        yield from found
