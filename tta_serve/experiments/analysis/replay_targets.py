"""Policies that a log can be replayed for.

Each is a `Target`: the probability of each arm that the policy would have given a request.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tta_serve.experiments.analysis.replay import Target
from tta_serve.experiments.design.definition import Definition, Share
from tta_serve.experiments.errors import ExperimentError

_MOST = 1_000_000  # requests of a file


class _Line(BaseModel):
    """A line of a file of probabilities."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str
    arms: dict[str, Share] = Field(min_length=1)


def target_weights(definition: Definition, weights: Mapping[str, float]) -> Target:
    """Return the policy that draws every request's arm by weights.

    An arm's probability is weight / sum of weights.

    Raises:
        ExperimentError: The weights are none, or of arms that are none.
    """
    _check_arms(definition, weights)
    total = sum(weights.values())
    if not 0 < total < float("inf") or min(weights.values()) < 0:
        raise ExperimentError("weights are numbers of 0 and more, not all 0")
    return lambda _, arm: weights.get(arm, 0.0) / total


def target_arm(definition: Definition, arm: str) -> Target:
    """Return the policy by which every request gets one arm.

    Raises:
        ExperimentError: There is no arm of that name.
    """
    return target_weights(definition, {arm: 1.0})


def target_policy(definition: Definition, policy: str) -> Target:
    """Return the policy of some arms, by whichever of them, in proportion to their weights.

    Raises:
        ExperimentError: No arm has the policy.
    """
    weights = {arm.name: arm.weight for arm in definition.arms if arm.policy == policy}
    if not weights:
        there = ", ".join(sorted({arm.policy for arm in definition.arms}))
        raise ExperimentError(
            f"no arm has the policy {policy!r}, so the log says nothing of it; arms have: {there}"
        )
    return target_weights(definition, weights)


def target_by_request(definition: Definition, file: Path) -> Target:
    """Return the policy that a file gives the probabilities of, request by request.

    The file has JSON lines {"request_id": ..., "arms": {ARM: probability, ...}}. The sum of a line
    is at most 1; what is missing is what the policy would have done that no arm does.

    Raises:
        ExperimentError: A line is not so. The policy raises it too, when it is asked about a
            request that is not in the file.
    """
    found: dict[str, Mapping[str, float]] = {}
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                read = _read_line(definition, line, f"{file}, line {number}")
                if read.request_id in found or number > _MOST:
                    raise ExperimentError(
                        f"{file}, line {number}: a request twice, or more than {_MOST} lines"
                    )
                found[read.request_id] = read.arms
    except OSError as error:
        raise ExperimentError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{file} is not UTF-8: {error}") from None

    def target(request_id: str, arm: str) -> float:
        if request_id not in found:
            raise ExperimentError(
                f"{file} has no line for the request {request_id!r}; it needs one for each that has"
                " an outcome"
            )
        return found[request_id].get(arm, 0.0)

    return target


def read_weights(file: Path) -> dict[str, float]:
    """Read a file of {ARM: weight, ...}.

    Raises:
        ExperimentError: The file cannot be read, or is something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ExperimentError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        data = None
    if (
        not isinstance(data, dict)
        or not data
        or not all(type(weight) in (int, float) for weight in data.values())
    ):
        raise ExperimentError(f'{file} is not JSON such as {{"control": 1, "gate": 3}}')
    return data


def _read_line(definition: Definition, line: str, place: str) -> _Line:
    """Return a checked line.

    Args:
        place: The file and the number of the line, for messages.
    """
    try:
        read = _Line.model_validate_json(line)
    except ValidationError:
        raise ExperimentError(
            f'{place}: wanted {{"request_id": ..., "arms": {{ARM: probability, ...}}}}'
        ) from None
    _check_arms(definition, read.arms)
    if sum(read.arms.values()) > 1 + 1e-9:
        raise ExperimentError(f"{place}: the probabilities are more than 1 together")
    return read


def _check_arms(definition: Definition, weights: Mapping[str, float]) -> None:
    if unknown := sorted(weights.keys() - definition.weights.keys()):
        raise ExperimentError(
            f"there is no arm {', '.join(unknown)}; there are: {', '.join(definition.weights)}"
        )
