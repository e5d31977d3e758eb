"""Policies that a log is replayed for, as the probability of each arm that they would have given a request."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router.experiments.definition import Definition, Share
from router.policy import RouterError
from tta_serve.experiments.replay import Target

_MOST = 1_000_000  # requests of a file


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str
    arms: dict[str, Share] = Field(min_length=1)


def to_weights(definition: Definition, weights: Mapping[str, float]) -> Target:
    """Every request gets an arm with probability weight / sum of weights. Raises RouterError for weights that are none."""
    _check_arms(definition, weights)
    total = sum(weights.values())
    if not 0 < total < float("inf") or min(weights.values()) < 0:
        raise RouterError("weights are numbers of 0 and more, not all 0")
    return lambda _, arm: weights.get(arm, 0.0) / total


def to_arm(definition: Definition, arm: str) -> Target:
    """Every request gets this arm. Raises RouterError if there is none of that name."""
    return to_weights(definition, {arm: 1.0})


def to_policy(definition: Definition, policy: str) -> Target:
    """Every request gets this policy, by whichever of its arms, in proportion to their weights. Raises RouterError."""
    weights = {arm.name: arm.weight for arm in definition.arms if arm.policy == policy}
    if not weights:
        there = ", ".join(sorted({arm.policy for arm in definition.arms}))
        raise RouterError(f"no arm has the policy {policy!r}, so the log says nothing of it; arms have: {there}")
    return to_weights(definition, weights)


def by_request(definition: Definition, file: Path) -> Target:
    """Each request has probabilities of its own, from JSON lines {"request_id": ..., "arms": {ARM: probability, ...}}.

    Their sum is at most 1; what is missing is what the policy would have done that no arm does. Raises RouterError for a line
    that is not so and, when it is asked, for a request that is not in the file.
    """
    found: dict[str, Mapping[str, float]] = {}
    try:
        with file.open() as lines:
            for number, line in enumerate(lines, 1):
                read = _read(definition, line, f"{file}, line {number}")
                if read.request_id in found or number > _MOST:
                    raise RouterError(f"{file}, line {number}: a request twice, or more than {_MOST} lines")
                found[read.request_id] = read.arms
    except OSError as error:
        raise RouterError(f"{file} cannot be read: {error.strerror}") from None

    def target(request_id: str, arm: str) -> float:
        if request_id not in found:
            raise RouterError(f"{file} has no line for the request {request_id!r}; it needs one for each that has an outcome")
        return found[request_id].get(arm, 0.0)

    return target


def read_weights(file: Path) -> dict[str, float]:
    """A file of {ARM: weight, ...}. Raises RouterError."""
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise RouterError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or not data or not all(type(weight) in (int, float) for weight in data.values()):
        raise RouterError(f'{file} is not JSON such as {{"control": 1, "gate": 3}}')
    return data


def _read(definition: Definition, line: str, place: str) -> _Line:
    try:
        read = _Line.model_validate_json(line)
    except ValidationError:
        raise RouterError(f'{place}: wanted {{"request_id": ..., "arms": {{ARM: probability, ...}}}}') from None
    _check_arms(definition, read.arms)
    if sum(read.arms.values()) > 1 + 1e-9:
        raise RouterError(f"{place}: the probabilities are more than 1 together")
    return read


def _check_arms(definition: Definition, weights: Mapping[str, float]) -> None:
    if unknown := sorted(weights.keys() - definition.weights.keys()):
        raise RouterError(f"there is no arm {', '.join(unknown)}; there are: {', '.join(definition.weights)}")
