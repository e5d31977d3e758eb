"""What a run of requests gave, in figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

OBJECTIVES_MS = {"ttft": 1000.0, "tpot": 200.0}
"""What counts for the goodput: the first token, and the mean time of one after it, within these."""


@dataclass(frozen=True)
class LoadFigures:
    """What a run of requests gave."""

    tok_s: float
    """Answered tokens per second of wall time."""
    requests_s: float
    """Answered requests, likewise."""
    goodput_s: float
    """Those of them that kept `OBJECTIVES_MS`."""
    ttft_ms: float
    """Milliseconds to the first token, the median over the requests."""
    ttft_p99_ms: float
    """The 99th percentile."""
    ttft_mean_ms: float
    """The mean."""
    tpot_ms: float
    """Milliseconds to each token after it, the median over the requests of their means."""
    itl_ms: float
    """Milliseconds from one token to the next, the median over all."""
    itl_p99_ms: float
    """The 99th percentile."""
    e2e_ms: float
    """Milliseconds to the last token, the median over the requests."""
    e2e_p99_ms: float
    """The 99th percentile."""
    client_cores: float
    """CPU seconds that the client took, per second."""


def make_figures(found: Mapping[str, Any], client_cores: float) -> LoadFigures:
    """Make figures of what vLLM's benchmark client found, none of it having failed."""
    first, gaps = found["ttfts"], found["itls"]
    between = [gap for one in gaps for gap in one]
    means = [sum(one) / (n - 1) for one, n in zip(gaps, found["output_lens"], strict=True)]
    whole = [one + sum(after) for one, after in zip(first, gaps, strict=True)]
    return LoadFigures(
        tok_s=found["output_throughput"],
        requests_s=found["request_throughput"],
        goodput_s=found["request_goodput"],
        ttft_ms=1e3 * median(first),
        ttft_p99_ms=_p99_ms(first),
        ttft_mean_ms=1e3 * fmean(first),
        tpot_ms=1e3 * median(means),
        itl_ms=1e3 * median(between),
        itl_p99_ms=_p99_ms(between),
        e2e_ms=1e3 * median(whole),
        e2e_p99_ms=_p99_ms(whole),
        client_cores=client_cores,
    )


def _p99_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.percentile(seconds, 99))
