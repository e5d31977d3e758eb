"""When requests came to another server: what a public trace of serving says."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from pydantic import BaseModel, Field, FiniteFloat, ValidationError


class TracedRequest(BaseModel):
    """A line of a trace, without what nobody asks here, such as how long the prompt was."""

    timestamp: FiniteFloat = Field(ge=0, strict=True)
    """Milliseconds since the trace began."""


def read_arrivals(file: Path, count: int) -> tuple[float, ...]:
    """Read when the first requests of a trace came.

    Args:
        file: A JSON object a line, as in Mooncake's traces
            (https://github.com/kvcache-ai/Mooncake): what it says beside `timestamp` is not read.
        count: How many requests; the lines after them are not read.

    Returns:
        Their times since the first one, as they are if one comes in each unit of time in the mean.

    Raises:
        ValueError: They are too few, out of order, all at one time, or none of a trace.
    """
    with file.open("rb") as lines:
        times = list(_read_times(islice(lines, count)))
    if len(times) < count:
        raise ValueError(f"it has {len(times)} requests; {count} are asked")
    for number, (before, after) in enumerate(pairwise(times), 2):
        if after < before:
            raise ValueError(
                f"line {number} is earlier than line {number - 1}; sort it by timestamp"
            )
    return _scale(times)


def _read_times(lines: Iterator[bytes]) -> Iterator[float]:
    for number, line in enumerate(lines, 1):
        try:
            yield TracedRequest.model_validate_json(line).timestamp
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            wanted = 'a line is a JSON object such as {"timestamp": 27482}, in milliseconds'
            raise ValueError(f"line {number}: {said}; {wanted}") from None


def _scale(times: Sequence[float]) -> tuple[float, ...]:
    first, span = times[0], times[-1] - times[0]
    if not span:
        raise ValueError(
            f"its first {len(times)} requests come at one time, so they have no rate to scale"
        )
    return tuple((time - first) * (len(times) - 1) / span for time in times)
