"""Arrivals of a trace: scaled, bounded, and refused where they are none."""

from pathlib import Path

import pytest

from loadtest.common.arrival_trace import read_arrivals


def write_trace(folder: Path, *lines: str) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def stamps(*times: float) -> list[str]:
    return [f'{{"timestamp": {time}, "input_length": 6758, "hash_ids": [0, 1]}}' for time in times]


def test_gaps_keep_their_proportions_and_one_request_comes_in_a_unit_of_time(
    tmp_path: Path,
) -> None:
    file = write_trace(tmp_path, *stamps(27000, 27000, 30000, 36000))
    assert read_arrivals(file, 4) == (0, 0, 1, 3)


def test_the_unit_does_not_matter(tmp_path: Path) -> None:
    wanted = read_arrivals(write_trace(tmp_path, *stamps(0, 3000, 4000)), 3)
    assert read_arrivals(write_trace(tmp_path, *stamps(0, 3, 4)), 3) == pytest.approx(wanted)


def test_no_more_lines_are_read_than_are_asked(tmp_path: Path) -> None:
    file = write_trace(tmp_path, *stamps(0, 500), "not a line of a trace")
    assert read_arrivals(file, 2) == (0, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "0 requests; 3 are asked"),
        (stamps(0, 1), "2 requests; 3 are asked"),
        (stamps(0, 2, 1), "line 3 is earlier than line 2; sort"),
        (stamps(7, 7, 7), "first 3 requests come at one time"),
        ([*stamps(0, 1), ""], r"line 3: .*\{\"timestamp\": 27482\}"),
        ([*stamps(0), '{"time": 1}', *stamps(2)], "line 2: Field required"),
        ([*stamps(0), '{"timestamp": "1"}', *stamps(2)], "line 2: Input should be a valid number"),
        ([*stamps(0), '{"timestamp": NaN}', *stamps(2)], "line 2: "),
        (stamps(-1, 0, 1), "line 1: "),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_arrivals(write_trace(tmp_path, *lines), 3)
