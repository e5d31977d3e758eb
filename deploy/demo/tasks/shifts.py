"""How far a day lies from a reference day, and how that is worked out in lines.

Every line is one small step: the reference day, the shift (`+45 days`), then the sum, and a line
for each month that is passed, with its length: `2024-04 has 30 < 63: 63 - 30 = 33`. The last line
is the ISO date. "Next" is the first such weekday after the reference day, "last" the latest before.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from deploy.demo.tasks.task import list_words

WEEKDAYS = list_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
Unit = Literal["days", "weeks", "weekday", "months", "years", "month end"]


@dataclass(frozen=True)
class Shift:
    """How far a day lies from a reference day."""

    unit: Unit
    n: int = 1
    """How many units ahead, or back where negative; of a weekday, 1 for the next, -1 the last."""
    weekday: int = 0
    """Which one it is, where the unit is a weekday; Monday is 0."""


def work_out(today: date, shift: Shift) -> str:
    """Return the lines that lead from a reference day to the one a shift away.

    Raises ValueError where the month that is come to has no such day.
    """
    return "\n".join((today.isoformat(), *_STEPS[shift.unit](today, shift)))


def _compare(one: int, other: int) -> str:
    sign = "<" if one < other else ">" if one > other else "="
    return f"{one} {sign} {other}"


def _walk_days(today: date, shift: Shift) -> Iterator[str]:
    yield f"{shift.n:+} days"
    yield from (_go_ahead if shift.n > 0 else _go_back)(today, abs(shift.n))


def _go_ahead(today: date, days: int) -> Iterator[str]:
    day = today.day + days
    yield f"{today.day} + {days} = {day}"
    month = today.replace(day=1)
    while day > (length := monthrange(month.year, month.month)[1]):
        rest = day - length
        yield f"{month:%Y-%m} has {_compare(length, day)}: {day} - {length} = {rest}"
        day = rest
        month += timedelta(length)
    yield f"{month:%Y-%m} has {_compare(length, day)}"
    yield month.replace(day=day).isoformat()


def _go_back(today: date, days: int) -> Iterator[str]:
    if today.day > days:
        day = today.day - days
        yield f"{_compare(today.day, days)}: {today.day} - {days} = {day}"
        yield today.replace(day=day).isoformat()
        return
    left = days - today.day
    yield f"{_compare(today.day, days)}: {days} - {today.day} = {left}"
    last = today.replace(day=1) - timedelta(1)
    while left >= last.day:
        rest = left - last.day
        yield f"{last:%Y-%m} has {_compare(last.day, left)}: {left} - {last.day} = {rest}"
        left = rest
        last = last.replace(day=1) - timedelta(1)
    day = last.day - left
    yield f"{last:%Y-%m} has {_compare(last.day, left)}: {last.day} - {left} = {day}"
    yield last.replace(day=day).isoformat()


def _walk_weeks(today: date, shift: Shift) -> Iterator[str]:
    yield f"{shift.n:+} weeks"
    yield f"{abs(shift.n)} x 7 = {abs(shift.n) * 7}"
    yield from _walk_days(today, Shift("days", shift.n * 7))


def _walk_weekdays(today: date, shift: Shift) -> Iterator[str]:
    """Count the days to the one wanted by their names."""
    start = today.weekday()
    away = (shift.n * (shift.weekday - start) - 1) % 7 + 1
    names = [WEEKDAYS[(start + shift.n * n) % 7][:3] for n in range(away + 1)]
    counted = ", ".join(f"{name} {n}" for n, name in enumerate(names[1:], 1))
    head = "next {} after {}" if shift.n > 0 else "last {} before {}"
    yield f"{head.format(names[-1], names[0])}: {counted}"
    yield from _walk_days(today, Shift("days", shift.n * away))


def _walk_months(today: date, shift: Shift) -> Iterator[str]:
    yield f"{shift.n:+} months"
    n = abs(shift.n)
    month = today.month + shift.n
    year = today.year
    if shift.n > 0:
        yield f"{today.month} + {n} = {month}"
        if month > 12:
            yield f"{month} > 12: {month} - 12 = {month - 12}, {year} + 1 = {year + 1}"
    elif month > 0:
        yield f"{_compare(today.month, n)}: {today.month} - {n} = {month}"
    else:
        more = today.month + 12
        yield f"{_compare(today.month, n)}: {today.month} + 12 = {more}, {year} - 1 = {year - 1}"
        yield f"{more} - {n} = {month + 12}"
    years, index = divmod(month - 1, 12)
    yield today.replace(year=year + years, month=index + 1).isoformat()


def _walk_years(today: date, shift: Shift) -> Iterator[str]:
    yield f"{shift.n:+} years"
    year = today.year + shift.n
    yield f"{today.year} {'+' if shift.n > 0 else '-'} {abs(shift.n)} = {year}"
    yield today.replace(year=year).isoformat()


def _walk_to_end(today: date, shift: Shift) -> Iterator[str]:
    length = monthrange(today.year, today.month)[1]
    yield "end of month"
    yield f"{today:%Y-%m} has {length}"
    yield today.replace(day=length).isoformat()


_STEPS: Mapping[Unit, Callable[[date, Shift], Iterator[str]]] = {
    "days": _walk_days,
    "weeks": _walk_weeks,
    "weekday": _walk_weekdays,
    "months": _walk_months,
    "years": _walk_years,
    "month end": _walk_to_end,
}
