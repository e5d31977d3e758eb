"""Rows for the tests."""

from typing import Any

from tta_serve.store.records import Exposure

SOME = Exposure(
    request_id="chatcmpl-1",
    experiment="routing",
    version=1,
    arm="gate",
    unit="5f2d",
    policy="gate",
    policy_version="3",
    mix="598c2545a1589462",
    propensity=0.5,
    router_ms=0.6,
    total_ms=120.0,
    prompt_tokens=51,
    completion_tokens=12,
    outcome="ok",
    time=1000.0,
)


def exposure(**changes: Any) -> Exposure:
    return Exposure(**{**vars(SOME), **changes})


def numbered(count: int, **changes: Any) -> list[Exposure]:
    return [exposure(request_id=f"chatcmpl-{i:06}", time=float(i), **changes) for i in range(count)]
