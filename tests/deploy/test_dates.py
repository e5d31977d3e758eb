"""Dates: what is asked is read from the prompts anew, and every line of work is gone over."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest

from deploy.demo.tasks import SPLITS, TASKS, Example, Split
from deploy.demo.tasks.shifts import Shift, Unit, work_out
from deploy.demo.voices import SPEAKERS, TRAIN, read_spoken, read_spoken_voices
from tests.deploy.date_reading import check_worked
from tests.deploy.test_phrasings import check_dates

BY_SPLIT = pytest.mark.parametrize("split", SPLITS)
SPOKEN = [
    spoken
    for own in (read_spoken(SPEAKERS), *read_spoken_voices(TRAIN).values())
    for spoken in own
    if spoken.task == "dates"
]
UNITS: dict[Unit, int] = {"days": 200, "weeks": 20, "months": 12, "years": 20}
SHIFTS = [
    *(
        Shift(unit, sign * n)
        for unit, most in UNITS.items()
        for n in range(1, most)
        for sign in (1, -1)
    ),
    *(Shift("weekday", sign, day) for sign in (1, -1) for day in range(7)),
    Shift("month end"),
]


def examples(split: Split) -> list[Example]:
    return TASKS["dates"].examples(split, 1000, seed=3)


@BY_SPLIT
def test_answers_follow_from_the_prompts(split: Split) -> None:
    for example in examples(split):
        check_dates(example.prompt, example.answer)


def test_more_than_half_leave_the_month_and_february_is_often_met() -> None:
    answers = [example.answer for example in examples("train")]
    days = [
        (date.fromisoformat(answer[:10]), date.fromisoformat(answer[-10:]))
        for answer in answers
        if "\n" in answer
    ]
    assert 0.5 < len(days) / len(answers) < 0.7
    assert sum(one.month != other.month for one, other in days) > 0.6 * len(days)
    assert sum(one.year != other.year for one, other in days) > 0.1 * len(days)
    lengths = Counter(
        line[5:14] for answer in answers for line in answer.split("\n") if " has " in line
    )
    assert lengths["02 has 29"] > 10 < lengths["02 has 28"]
    assert len(lengths) == 13


@pytest.mark.parametrize("shift", SHIFTS[::7], ids=str)
def test_each_shift_is_worked_out_from_every_day_of_four_years(shift: Shift) -> None:
    for ordinal in range(date(2023, 1, 1).toordinal(), date(2027, 1, 1).toordinal(), 3):
        today = date.fromordinal(ordinal)
        if today.day < 29 or shift.unit not in ("months", "years"):
            *work, iso = work_out(today, shift).split("\n")
            check_worked(work)
            away = (date.fromisoformat(iso) - today).days
            expected = {"days": shift.n, "weeks": 7 * shift.n}.get(shift.unit, away)
            assert away == expected


def test_the_lines_cross_months_one_by_one() -> None:
    assert work_out(date(2024, 1, 29), Shift("weeks", 5)).split("\n") == [
        "2024-01-29",
        "+5 weeks",
        "5 x 7 = 35",
        "+35 days",
        "29 + 35 = 64",
        "2024-01 has 31 < 64: 64 - 31 = 33",
        "2024-02 has 29 < 33: 33 - 29 = 4",
        "2024-03 has 31 > 4",
        "2024-03-04",
    ]
    assert work_out(date(2023, 1, 3), Shift("weekday", -1, 4)).split("\n") == [
        "2023-01-03",
        "last Fri before Tue: Mon 1, Sun 2, Sat 3, Fri 4",
        "-4 days",
        "3 < 4: 4 - 3 = 1",
        "2022-12 has 31 > 1: 31 - 1 = 30",
        "2022-12-30",
    ]


def test_a_day_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="day"):
        work_out(date(2024, 1, 31), Shift("months", 1))


def test_what_people_ask_is_worked_out_as_the_generator_does() -> None:
    relative = [spoken for spoken in SPOKEN if spoken.work]
    assert len(relative) == 91
    for spoken in relative:
        answer = spoken.example.answer
        today = date.fromisoformat(answer[:10])
        check_worked(answer.split("\n"))
        assert answer == f"{spoken.work}\n{spoken.want}"
        assert answer in {work_out(today, shift) for shift in SHIFTS if is_day(today, shift)}, (
            spoken
        )


def is_day(today: date, shift: Shift) -> bool:
    try:
        work_out(today, shift)
    except ValueError:
        return False
    return True


def test_a_written_date_has_nothing_to_work_out() -> None:
    assert all(
        spoken.example == Example(spoken.prompt, spoken.want or "")
        for spoken in SPOKEN
        if not spoken.work
    )
