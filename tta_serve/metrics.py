"""Every metric of ours, declared once. vLLM's own live in the same registry."""

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from adapters.coefficient import numbers_of
from adapters.mix import Mix
from tta_serve.protocol import MergeInfo

if TYPE_CHECKING:
    from tta_serve.engine.client.usage import Usage

RECENT_REQUESTS = 1024
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

requests = Counter(
    "tta_requests",
    "Requests by policy and outcome (ok, client_error, error, aborted).",
    ["policy", "outcome"],
)
tokens = Counter(
    "tta_tokens",
    "Tokens of requests by policy, read (prompt) and written (completion).",
    ["policy", "kind"],
)
request_seconds = Histogram(
    "tta_request_seconds",
    "Time from a request's arrival at the server until the end of its answer.",
    ["policy"],
    buckets=(*_SECONDS, 120, 300, 600),
)
cached_tokens = Counter(
    "tta_cached_tokens",
    "Prompt tokens of requests by policy that the prefix cache had.",
    ["policy"],
)
failures = Counter(
    "tta_failures",
    "Requests of any route that ended with an error, by its code, also those that were refused"
    " before a policy was known.",
    ["code"],
)
first_token_seconds = Histogram(
    "tta_first_token_seconds",
    "Time from a request's arrival at the server until its first token.",
    ["policy"],
    buckets=_SECONDS,
)
next_token_seconds = Histogram(
    "tta_next_token_seconds",
    "Time between the tokens of an answer, its mean; of several samples together.",
    ["policy"],
    buckets=_SECONDS,
)
tenant_requests = Counter(
    "tta_tenant_requests",
    "Requests by tenant and outcome, where the server has keys.",
    ["tenant", "outcome"],
)
tenant_tokens = Counter(
    "tta_tenant_tokens",
    "Tokens of requests by tenant, read (prompt) and written (completion), where the server has"
    " keys.",
    ["tenant", "kind"],
)
router_seconds = Histogram(
    "tta_router_seconds",
    "Time from a request's arrival at the server until its mix is known.",
    ["policy"],
    buckets=(0.0001, 0.0005, *_SECONDS[:10]),
)
probe_seconds = Histogram(
    "tta_probe_seconds",
    "Time that the engine took for what policies asked of it, by kind of probe.",
    ["kind"],
    buckets=_SECONDS,
)
coefficient_mass = Counter(
    "tta_expert_coefficient",
    "Sum over requests of the absolute coefficient of each expert.",
    ["expert"],
)
grid_error = Histogram(
    "tta_grid_error",
    "How far the grid moved the coefficient that it moved most, of each mix that a policy chose.",
    ["policy"],
    buckets=(0.001, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.1),
)
best_score = Histogram(
    "tta_best_score",
    "The best expert's score in each decision, in the policy's units: nearness to the centroid of"
    " its examples, or a probability.",
    ["policy"],
    buckets=tuple(step / 10 for step in range(-2, 11)),
)
abstentions = Counter("tta_abstentions", "Requests that a policy left to the base.", ["policy"])
later_segments = Counter(
    "tta_later_segments",
    "Segments in which another mix went on with an answer, by policy.",
    ["policy"],
)
fallbacks = Counter("tta_fallbacks", "Requests answered by a policy's fallback.", ["policy"])
kept_mixes = Counter(
    "tta_kept_mixes",
    "Requests that kept the mix of an earlier turn of their conversation.",
    ["policy"],
)
probe_cache = Counter(
    "tta_probe_cache",
    "What policies asked of the engine: known already (hit), being asked by another (shared), or"
    " run for them (miss).",
    ["kind", "found"],
)
exposures = Counter(
    "tta_exposures",
    "Requests that an arm of an experiment acted on, by outcome (as those of tta_requests).",
    ["experiment", "arm", "outcome"],
)
arm_first_token_seconds = Histogram(
    "tta_arm_first_token_seconds",
    "Time from the arrival of a request that an arm acted on until its first token.",
    ["experiment", "arm"],
    buckets=_SECONDS,
)
sample_ratio = Gauge(
    "tta_sample_ratio_p",
    "Of each running experiment, the p-value of its arms having the units that their weights say;"
    " below 0.001 its results are not to be trusted.",
    ["experiment"],
)
exposures_dropped = Gauge(
    "tta_exposures_dropped", "Exposures that could not be written and are lost."
)
exposures_waiting = Gauge("tta_exposures_waiting", "Exposures that wait to be written.")
stale_snapshots = Counter(
    "tta_stale_snapshots", "Times that experiments could not be read anew from the store."
)
arms_stopped = Counter("tta_arms_stopped", "Arms that a guardrail stopped.", ["experiment", "arm"])
killed = Gauge("tta_kill_switch", "1 while the kill switch answers all requests.")
feedback = Counter("tta_feedback", "Outcomes that were sent, by status of the answer.", ["status"])
config_version = Gauge("tta_config_version", "The version of the config that is in force.")
config_changes = Counter(
    "tta_config_changes",
    "Changes of the config while it is in force, by outcome (made, refused).",
    ["outcome"],
)
suspects = Gauge("tta_suspects", "Requests that the engine died with, and that run alone.")
quarantined = Counter(
    "tta_quarantined", "Requests that were refused, since the engine died with them several times."
)
refused = Counter(
    "tta_refused",
    "Requests that a key had no budget for: too many at once (at_once), or a minute (requests,"
    " tokens).",
    ["key", "why"],
)
turned_away = Counter(
    "tta_turned_away",
    "Requests that a busy server did not take: its queue was full (full), or a tenant's part of it"
    " (tenant), or their turn would have come too late (deadline).",
    ["why"],
)
policies_paused = Counter(
    "tta_policies_paused",
    "Times that a policy was left alone for a while, as it failed again and again.",
    ["policy"],
)
shadows = Counter(
    "tta_shadow_requests",
    "What shadow policies did: the same mix as the live policy (same), another, failed, or"
    " skipped.",
    ["policy", "found"],
)
shadow_passes = Counter(
    "tta_shadow_passes", "Rows that the engine ran for shadow policies.", ["policy"]
)
distinct_mixes = Gauge(
    "tta_distinct_mixes", f"Distinct mixes among the last {RECENT_REQUESTS} requests."
)
log_lines_left_out = Counter(
    "tta_log_lines_left_out",
    "Lines of the log that were not written: more alike than in a second are (alike), or nobody"
    " took them fast enough (full), or at all (unsent).",
    ["why"],
)
slots_used = Gauge("tta_slots_used", "Slots of the engine's coefficient table that hold a mix.")
experts_loaded = Gauge("tta_experts_loaded", "Experts that requests can use.")
pinned_requests = Gauge(
    "tta_pinned_requests",
    "Requests that pinned an expert of which features are kept, as examples of what it is for.",
    ["expert"],
)
slots_total = Gauge("tta_slots", "Slots of the engine's coefficient table.")
resident = Gauge(
    "tta_resident",
    "What experts take of the room for them in a worker (experts, ranks, bytes), and what those of"
    " the dense form take beside it (dense_bytes).",
    ["what"],
)
capacity = Gauge("tta_capacity", "The room for experts in a worker.", ["what"])
dense_switches = Gauge(
    "tta_dense_switches", "Times that a worker's weights became those of another dense mix."
)


class RecentMixes:
    """How many distinct mixes the last requests had, in constant space."""

    def __init__(self) -> None:
        self._order: deque[str] = deque()
        self._tally: Tally[str] = Tally()

    def add(self, mix: str) -> int:
        """Count one request's mix, and return how many distinct ones there are now."""
        self._order.append(mix)
        self._tally[mix] += 1
        if len(self._order) > RECENT_REQUESTS:
            old = self._order.popleft()
            self._tally[old] -= 1
            if not self._tally[old]:
                del self._tally[old]
        return len(self._tally)


_recent = RecentMixes()


def observe_decision(info: MergeInfo, mix: Mix, rounding: float | None) -> None:
    """A mix was chosen for a request.

    Args:
        rounding: How far the grid moved the coefficient that it moved most, None if it was not
            asked.
    """
    if rounding is not None:
        grid_error.labels(info.policy).observe(rounding)
    router_seconds.labels(info.policy).observe(info.router_ms / 1000)
    for expert, coefficient in mix.coefficients:
        sizes = [abs(number) for number in numbers_of(coefficient)]
        coefficient_mass.labels(expert).inc(sum(sizes) / len(sizes))
    if info.abstained:
        abstentions.labels(info.policy).inc()
    if info.scores:
        best_score.labels(info.policy).observe(max(info.scores.values()))
    if info.fallback:
        fallbacks.labels(info.policy).inc()
    if info.kept:
        kept_mixes.labels(info.policy).inc()
    distinct_mixes.set(_recent.add(info.mix))


@dataclass
class RequestOutcome:
    """Who decided a request and how it ended, set as it goes on."""

    policy: str = "none"
    value: str = "ok"
    tenant: str | None = None
    """Whose it is, None where the server has no keys."""
    usage: "Usage | None" = None
    """What it took of the engine, None if it never came to that."""


@contextmanager
def count_request() -> Iterator[RequestOutcome]:
    """Count a request under its policy and outcome when the block ends, however it ends."""
    outcome, began = RequestOutcome(), time.perf_counter()
    try:
        yield outcome
    except Exception:
        outcome.value = "error"
        raise
    except BaseException:  # cancelled, or its reader went away
        outcome.value = "aborted"
        raise
    finally:
        requests.labels(outcome.policy, outcome.value).inc()
        if outcome.usage is not None and outcome.usage.first is not None:
            _observe_usage(outcome, outcome.usage, outcome.usage.first, began)
        if outcome.tenant is not None:
            tenant_requests.labels(outcome.tenant, outcome.value).inc()


def _observe_usage(outcome: RequestOutcome, usage: "Usage", first: float, began: float) -> None:
    """Observe what a request took whose first token came."""
    ended = time.perf_counter()
    first_token_seconds.labels(outcome.policy).observe(first - began)
    request_seconds.labels(outcome.policy).observe(ended - began)
    if usage.completion_tokens > 1:
        took = ended - first
        next_token_seconds.labels(outcome.policy).observe(took / (usage.completion_tokens - 1))
    cached_tokens.labels(outcome.policy).inc(usage.cached_tokens)
    _count_tokens(tokens, outcome.policy, usage)
    if outcome.tenant is not None:
        _count_tokens(tenant_tokens, outcome.tenant, usage)


def _count_tokens(counter: Counter, name: str, usage: "Usage") -> None:
    counter.labels(name, "prompt").inc(usage.prompt_tokens)
    counter.labels(name, "completion").inc(usage.completion_tokens)


def collect_families() -> list[Metric]:
    """Return this process's metrics as they are now, ours and vLLM's."""
    return list(REGISTRY.collect())


def cache_in_use() -> float:
    """The share of the engine's cache of keys and values that requests hold, by vLLM's gauge."""
    samples = [s for family in collect_families() for s in family.samples]
    return max((s.value for s in samples if s.name == "vllm:kv_cache_usage_perc"), default=0.0)


def expose_families(by_replica: Iterable[tuple[str, Iterable[Metric]]]) -> bytes:
    """Return several processes' metrics as one text for Prometheus.

    Args:
        by_replica: Each replica's name, with which its samples are labelled, and its metrics.
    """
    families: dict[str, Metric] = {}
    for replica, collected in by_replica:
        for family in collected:
            target = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            target.samples += [
                s._replace(labels={**s.labels, "replica": replica}) for s in family.samples
            ]

    class Collector:
        def collect(self) -> Iterator[Metric]:
            yield from families.values()

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)


def sum_samples(exposition_text: str, name: str) -> float:
    """Return the sum of a metric's samples in Prometheus' text format, 0 if it has none.

    Args:
        exposition_text: As `/metrics` gives it.
        name: The samples' name, such as `tta_slots` or `vllm:prefix_cache_hits_total`.
    """
    families = text_string_to_metric_families(exposition_text)
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == name
    )
