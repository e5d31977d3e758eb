"""Requests of every kind: what the statement has to be, and how somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deploy.demo.tasks.sql.speaker import WORDING, Speaker
from deploy.demo.tasks.sql.statements import Condition, Figure, Sign, Statement, Value
from deploy.demo.tasks.sql.tables import Column, plural
from deploy.demo.tasks.sql.values import draw_value

Fields = dict[str, str]
_SIGNS: Sequence[Sign] = (*((">",) * 9), *(("<",) * 6), *(("=",) * 4), ">=", "<=", "<>", "BETWEEN")

_DATED_SIGNS: Sequence[Sign] = (*((">",) * 6), *(("<",) * 6), *(("=",) * 5), "BETWEEN")


def draw_request(speaker: Speaker) -> tuple[str, Statement]:
    """Draw what somebody asks, as words and as a statement.

    The words have `{table}` in them where they are the whole prompt.
    """
    kinds = [kind for kind, (weight, _) in _REQUESTS.items() for _ in range(weight)]
    kind = speaker.rng.choice(kinds)
    fields, statement = _REQUESTS[kind][1](speaker)
    templates = [
        template
        for template in WORDING[kind][speaker.split]
        if "{limit}" not in template or statement.limit != 1
    ]
    table = speaker.table
    fields |= {"table": "{table}", "things": table.things, "thing": table.thing}
    return speaker.word(speaker.rng.choice(templates), **fields), statement


def _draw_conditions(
    speaker: Speaker, *, few: bool = False, taken: str = ""
) -> tuple[Fields, list[Condition]]:
    """Draw a condition, seldom two, and how they are said."""
    usable = [column for column in speaker.table.columns if column.values or column.kind != "text"]
    columns = [column for column in usable if column.name != taken] or usable
    texts = [column for column in columns if column.kind in ("text", "flag")]
    first = speaker.rng.choice(texts if texts and speaker.chance(0.5) else columns)
    chosen = [first]
    others = [column for column in columns if column is not first]
    if others and not few and speaker.chance(0.04):
        chosen.append(speaker.rng.choice(others))
    conditions = [_draw_condition(speaker, column) for column in chosen]
    said = [speaker.condition(*both) for both in zip(conditions, chosen, strict=True)]
    whose, cond = said[0]
    if len(said) > 1:
        whose = speaker.say("two", a=whose, b=said[1][0])
        cond = speaker.say("two", a=cond, b=said[1][1])
    return {"whose": whose, "cond": cond}, conditions


def _draw_condition(speaker: Speaker, column: Column) -> Condition:
    value = draw_value(speaker.rng, speaker.split, column)
    others = [c for c in speaker.table.columns if c.ordered and c is not column]
    if column.kind == "date" and others and speaker.chance(0.35 if column.null else 0.1):
        return Condition(column.name, "IS NULL")
    if column.kind == "flag":
        return Condition(column.name, "=", value)
    if column.kind == "text":
        return Condition(column.name, "<>" if speaker.chance(0.03) else "=", value)
    sign = speaker.rng.choice(_SIGNS if column.kind == "number" else _DATED_SIGNS)
    if sign == "BETWEEN":
        low, high = _draw_span(speaker, column)
        return Condition(column.name, sign, low, high)
    return Condition(column.name, sign, value)


def _draw_span(speaker: Speaker, column: Column) -> tuple[Value, Value]:
    one, other = (draw_value(speaker.rng, speaker.split, column) for _ in range(2))
    while one == other:
        other = draw_value(speaker.rng, speaker.split, column)
    swap = str(one) > str(other) if isinstance(one, str) else one > other  # type: ignore[operator]
    return (other, one) if swap else (one, other)


def _draw_columns(
    speaker: Speaker, conditions: Sequence[Condition], *, whole: float
) -> tuple[Fields, tuple[str, ...]]:
    """Draw the columns that are wanted: one or two, seldom three, or all."""
    if speaker.chance(whole):
        return {"cols": speaker.list_columns([])}, ()
    fixed = {condition.column for condition in conditions if condition.sign == "="}
    columns = [column for column in speaker.table.columns if column.name not in fixed]
    columns = columns or list(speaker.table.columns)
    size = min(len(columns), speaker.rng.choice((1, 1, 1, 1, 2, 2, 2, 2, 2, 3)))
    chosen = speaker.rng.sample(columns, size)
    if speaker.chance(0.7):
        chosen.sort(key=columns.index)
    names = tuple(column.name for column in chosen)
    return {"cols": speaker.list_columns(chosen)}, names


def _draw_order(speaker: Speaker, conditions: Sequence[Condition]) -> tuple[Column, bool]:
    fixed = {condition.column for condition in conditions if condition.sign in ("=", "IS NULL")}
    columns = [column for column in speaker.table.columns if column.name not in fixed]
    ordered = [column for column in columns if column.ordered]
    others = [column for column in columns if column.values]
    few = (others or ordered) if speaker.chance(0.15) or not ordered else ordered
    column = speaker.rng.choice(few or [*speaker.table.columns])
    return column, column.ordered and speaker.chance(0.58)


def _ask_rows(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, conditions = _draw_conditions(speaker)
    wanted, columns = _draw_columns(speaker, conditions, whole=0.09)
    statement = Statement(speaker.table.name, columns, conditions=tuple(conditions))
    return fields | wanted, statement


def _ask_sorted(speaker: Speaker) -> tuple[Fields, Statement]:
    wanted, columns = _draw_columns(speaker, [], whole=0.15)
    column, descending = _draw_order(speaker, [])
    fields = wanted | {"sorted": speaker.order(column, descending=descending)}
    table = speaker.table.name
    return fields, Statement(table, columns, order=column.name, descending=descending)


def _ask_rows_sorted(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, conditions = _draw_conditions(speaker, few=True)
    wanted, columns = _draw_columns(speaker, conditions, whole=0.13)
    column, descending = _draw_order(speaker, conditions)
    fields |= wanted | {"sorted": speaker.order(column, descending=descending)}
    return fields, Statement(
        speaker.table.name,
        columns,
        conditions=tuple(conditions),
        order=column.name,
        descending=descending,
    )


def _ask_top(speaker: Speaker) -> tuple[Fields, Statement]:
    return _draw_best(speaker, {}, [])


def _ask_rows_top(speaker: Speaker) -> tuple[Fields, Statement]:
    return _draw_best(speaker, *_draw_conditions(speaker, few=True))


def _draw_best(
    speaker: Speaker, fields: Fields, conditions: Sequence[Condition]
) -> tuple[Fields, Statement]:
    wanted, columns = _draw_columns(speaker, conditions, whole=0.11)
    taken = {condition.column for condition in conditions}
    every = [column for column in speaker.table.columns if column.ordered]
    ordered = [column for column in every if column.name not in taken] or every
    column, descending = speaker.rng.choice(ordered), speaker.chance(0.62)
    n = speaker.rng.choice((1, 2, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7, 8, 10, 10, 12, 15, 20, 25, 50))
    said = {
        "sorted": speaker.order(column, descending=descending),
        "best": speaker.best(column, n, descending=descending),
        "limit": speaker.say("limit", n=speaker.count(n)),
    }
    return fields | wanted | said, Statement(
        speaker.table.name,
        columns,
        conditions=tuple(conditions),
        order=column.name,
        descending=descending,
        limit=n,
    )


def _ask_count(speaker: Speaker) -> tuple[Fields, Statement]:
    return {}, Statement(speaker.table.name, figure="COUNT")


def _ask_count_rows(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, conditions = _draw_conditions(speaker)
    return fields, Statement(speaker.table.name, figure="COUNT", conditions=tuple(conditions))


def _draw_by(speaker: Speaker, taken: str = "") -> tuple[Fields, Column]:
    columns = [c for c in speaker.table.columns if c.values and c.name != taken]
    column = speaker.rng.choice(columns or [speaker.table.columns[0]])
    return {"by": speaker.call(column)}, column


def _ask_count_groups(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, by = _draw_by(speaker)
    return fields, Statement(speaker.table.name, figure="COUNT", by=by.name)


def _draw_figure(speaker: Speaker, *, ends: float) -> tuple[Fields, Figure, Column]:
    """Draw what is worked out of which column."""
    numbers = speaker.table.among("number")
    totals = [column for column in numbers if column.total]
    ordered = [column for column in speaker.table.columns if column.ordered]
    figure: Figure
    if not numbers or speaker.chance(ends):
        figure, column = speaker.rng.choice(("MAX", "MIN")), speaker.rng.choice(ordered)
    elif totals and speaker.chance(0.5):
        figure, column = "SUM", speaker.rng.choice(totals)
    else:
        figure, column = "AVG", speaker.rng.choice(numbers)
    return {"figure": speaker.figure(figure, column)}, figure, column


def _ask_figure(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, figure, column = _draw_figure(speaker, ends=0.6)
    return fields, Statement(speaker.table.name, figure=figure, of=column.name)


def _ask_figure_rows(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, figure, column = _draw_figure(speaker, ends=0.45)
    said, conditions = _draw_conditions(speaker, few=True, taken=column.name)
    return fields | said, Statement(
        speaker.table.name, figure=figure, of=column.name, conditions=tuple(conditions)
    )


def _ask_groups(speaker: Speaker) -> tuple[Fields, Statement]:
    fields, figure, column = _draw_figure(speaker, ends=0.2)
    said, by = _draw_by(speaker, column.name)
    return fields | said, Statement(speaker.table.name, figure=figure, of=column.name, by=by.name)


def _ask_distinct(speaker: Speaker) -> tuple[Fields, Statement]:
    columns = [column for column in speaker.table.columns if column.values]
    column = speaker.rng.choice(columns or [speaker.table.columns[0]])
    called = speaker.call(column)
    many = plural(called) if called.isalpha() and called.islower() else called
    return {"c": called, "cs": many}, Statement(speaker.table.name, (column.name,), distinct=True)


# How many of a hundred requests are of a kind, much as people ask, and who makes them.
_REQUESTS: Mapping[str, tuple[int, Callable[[Speaker], tuple[Fields, Statement]]]] = {
    "rows": (28, _ask_rows),
    "sorted": (6, _ask_sorted),
    "rows_sorted": (13, _ask_rows_sorted),
    "top": (10, _ask_top),
    "rows_top": (3, _ask_rows_top),
    "count": (2, _ask_count),
    "count_rows": (8, _ask_count_rows),
    "count_groups": (6, _ask_count_groups),
    "figure": (8, _ask_figure),
    "figure_rows": (10, _ask_figure_rows),
    "groups": (9, _ask_groups),
    "distinct": (1, _ask_distinct),
}
