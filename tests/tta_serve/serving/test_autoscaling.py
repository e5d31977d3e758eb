"""How many replicas a load wants, in Ray's own words."""

import inspect
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.config import AutoscalingContext

from tta_serve.config.sections import ServerConfig
from tta_serve.serving.autoscaling import CACHE_IN_USE, ReplicasForLoad


def wanted(policy: ReplicasForLoad, requests: float, **cache: float) -> float:
    """Return how many replicas Ray is told of, by the requests and the cache in use of each."""
    said: dict[str, Any] = dict.fromkeys(inspect.signature(AutoscalingContext).parameters)
    said |= {"total_num_requests": requests, "aggregated_metrics": {CACHE_IN_USE: cache}}
    number, state = policy(AutoscalingContext(**said))
    assert state == {}
    return number


def test_requests_are_shared_out() -> None:
    assert wanted(ReplicasForLoad(8), 0) == 0
    assert wanted(ReplicasForLoad(8), 20, a=1.0) == 2.5


def test_the_cache_counts_where_it_has_a_target_and_wants_more() -> None:
    policy = ReplicasForLoad(8, 0.6)
    assert wanted(policy, 8, a=0.9, b=0.9) == pytest.approx(3)
    assert wanted(policy, 80, a=0.9, b=0.9) == 10
    assert wanted(policy, 8) == 1, "before replicas have reported"


def test_the_number_is_said_once_and_in_order() -> None:
    scaling = ServerConfig.model_validate({"autoscaling": {"max_replicas": 3}})
    assert (scaling.fewest_replicas, scaling.most_replicas) == (1, 3)
    assert ServerConfig.model_validate(scaling.model_dump()) == scaling, "as a reload reads it"
    fixed = ServerConfig(replicas=2)
    assert (fixed.fewest_replicas, fixed.most_replicas) == (2, 2)
    for wrong, told in (
        ({"replicas": 2, "autoscaling": {"max_replicas": 3}}, "say how many"),
        ({"autoscaling": {"min_replicas": 4, "max_replicas": 3}}, "below min_replicas"),
    ):
        with pytest.raises(ValidationError, match=told):
            ServerConfig.model_validate(wrong)
