"""What the dashboards show: their panels, and the PromQL behind each."""

from dataclasses import dataclass

WINDOW = "$__rate_interval"
_PROMPT = '{kind="prompt"}'
_ERRORS = '{outcome="error"}'


@dataclass(frozen=True)
class Curve:
    """One query of a panel."""

    expression: str
    """In PromQL; WINDOW stands for the range of rates."""
    legend: str = ""
    """As Grafana has it, such as {{policy}}."""


@dataclass(frozen=True)
class Panel:
    """A plot over time."""

    title: str
    curves: tuple[Curve, ...]
    unit: str = "short"
    """By Grafana's name."""
    needs: str = ""
    """What a server must have for it to show anything; empty for nothing."""


@dataclass(frozen=True)
class Dashboard:
    """A page of panels."""

    name: str
    """Its file's."""
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str = "", *, of: str = "") -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{of}[{WINDOW}]))"


def _rate_by(metric: str, by: str) -> Curve:
    """Return a rate for each value of some labels, which its legend names."""
    return Curve(_rate(metric, by), ": ".join(f"{{{{{label}}}}}" for label in by.split(", ")))


def _quantiles(metric: str, by: str = "") -> tuple[Curve, ...]:
    """Return the median and the 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return tuple(
        Curve(
            f"histogram_quantile({q}, {_rate(f'{metric}_bucket', labels)})",
            f"p{round(q * 100)} {{{{{by}}}}}" if by else f"p{round(q * 100)}",
        )
        for q in (0.5, 0.99)
    )


def _share(part: str, whole: str, by: str = "") -> Curve:
    return Curve(f"{_rate(part, by)} / {_rate(whole, by)}", f"{{{{{by}}}}}" if by else "share")


_OVERVIEW = (
    Panel("Requests", (_rate_by("tta_requests_total", "outcome"),), "reqps"),
    Panel(
        "Share of requests that failed",
        (
            Curve(
                f"({_rate('tta_requests_total', of=_ERRORS)} or vector(0))"
                f" / {_rate('tta_requests_total')}",
                "errors",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Requests that ended with an error, by its code",
        (_rate_by("tta_failures_total", "code"),),
        "reqps",
        needs="a request that failed",
    ),
    Panel("Time to first token", _quantiles("vllm:time_to_first_token_seconds"), "s"),
    Panel("Time between tokens", _quantiles("vllm:inter_token_latency_seconds"), "s"),
    Panel(
        "Tokens",
        (
            Curve(_rate("vllm:prompt_tokens_total"), "read"),
            Curve(_rate("vllm:generation_tokens_total"), "written"),
        ),
    ),
    Panel(
        "Requests in the engine",
        (
            Curve("sum (vllm:num_requests_running)", "running"),
            Curve("sum (vllm:num_requests_waiting)", "waiting"),
        ),
    ),
    Panel(
        "Lines of the log that were left out",
        (_rate_by("tta_log_lines_left_out_total", "why"),),
        needs="a storm of refusals",
    ),
)

_MERGING = (
    Panel("Requests by policy", (_rate_by("tta_requests_total", "policy"),)),
    Panel("Time until the mix is known", _quantiles("tta_router_seconds", "policy"), "s"),
    Panel("Time to first token by policy", _quantiles("tta_first_token_seconds", "policy"), "s"),
    Panel("Time between tokens by policy", _quantiles("tta_next_token_seconds", "policy"), "s"),
    Panel("Time of requests by policy", _quantiles("tta_request_seconds", "policy"), "s"),
    Panel("Time of probes", _quantiles("tta_probe_seconds", "kind"), "s"),
    Panel("Tokens by policy", (_rate_by("tta_tokens_total", "policy"),)),
    Panel(
        "Share of prompt tokens found in the prefix cache, by policy",
        (
            Curve(
                f"{_rate('tta_cached_tokens_total', 'policy')}"
                f" / {_rate('tta_tokens_total', 'policy', of=_PROMPT)}",
                "{{policy}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Coefficients by expert",
        (_rate_by("tta_expert_coefficient_total", "expert"),),
    ),
    Panel(
        "Share left to the base, by policy",
        (_share("tta_abstentions_total", "tta_requests_total", "policy"),),
        "percentunit",
    ),
    Panel(
        "Later segments a request, by policy",
        (_share("tta_later_segments_total", "tta_requests_total", "policy"),),
        "percentunit",
    ),
    Panel(
        "Fallbacks and kept mixes",
        (
            Curve(f"{_rate('tta_fallbacks_total')} or vector(0)", "fallbacks"),
            Curve(f"{_rate('tta_kept_mixes_total')} or vector(0)", "kept"),
        ),
    ),
    Panel(
        "Distinct mixes of the last 1,024 requests", (Curve("max (tta_distinct_mixes)", "mixes"),)
    ),
    Panel(
        "Slots",
        (
            Curve("sum (tta_slots_used)", "used"),
            Curve("sum (tta_slots)", "there are"),
        ),
    ),
    Panel("Experts", (Curve("max (tta_experts_loaded)", "served"),)),
    Panel(
        "Room that experts take",
        (
            Curve(
                "max by (what) (tta_resident / on (what, replica, instance) tta_capacity)",
                "{{what}}",
            ),
        ),
        "percentunit",
    ),
    Panel("How far the grid moved coefficients", _quantiles("tta_grid_error", "policy")),
    Panel("Best score of decisions", _quantiles("tta_best_score", "policy")),
    Panel(
        "Drift of scores: Kolmogorov-Smirnov distance, hour against week",
        (Curve("tta:score_drift", "{{policy}}"),),
        needs="an hour of requests",
    ),
    Panel(
        "Drift of routing: population stability index, hour against week",
        (Curve("tta:routing_psi", "index"),),
        needs="an hour of requests",
    ),
    Panel(
        "Policies left alone, as they fail again and again",
        (_rate_by("tta_policies_paused_total", "policy"),),
    ),
    Panel("What policies asked", (_rate_by("tta_probe_cache_total", "found"),)),
)

_ENGINE = (
    Panel(
        "Cache of keys and values",
        (Curve("max (vllm:kv_cache_usage_perc)", "used"),),
        "percentunit",
    ),
    Panel(
        "Share of prompt tokens found in the prefix cache",
        (_share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),),
        "percentunit",
    ),
    Panel("Time in the queue", _quantiles("vllm:request_queue_time_seconds"), "s"),
    Panel("Time of reading the prompt", _quantiles("vllm:request_prefill_time_seconds"), "s"),
    Panel("Preemptions", (Curve(_rate("vllm:num_preemptions_total"), "preemptions"),)),
)

_TENANTS = (
    Panel(
        "Requests by tenant",
        (_rate_by("tta_tenant_requests_total", "tenant, outcome"),),
        "reqps",
        needs="keys",
    ),
    Panel(
        "Tokens by tenant",
        (_rate_by("tta_tenant_tokens_total", "tenant, kind"),),
        needs="keys",
    ),
    Panel(
        "Requests turned away while the server was busy",
        (_rate_by("tta_turned_away_total", "why"),),
        needs="a busy server",
    ),
    Panel(
        "Requests beyond a key's budget",
        (_rate_by("tta_refused_total", "key, why"),),
        needs="keys with budgets",
    ),
)

_EXPERIMENTS = (
    Panel(
        "Exposures",
        (Curve(_rate("tta_exposures_total", "experiment, arm"), "{{experiment}}/{{arm}}"),),
        needs="a running experiment",
    ),
    Panel(
        "Requests of arms by outcome",
        (
            Curve(
                _rate("tta_exposures_total", "experiment, arm, outcome"),
                "{{experiment}}/{{arm}}: {{outcome}}",
            ),
        ),
        needs="a running experiment",
    ),
    Panel(
        "Time to first token by arm, median",
        (
            Curve(
                "histogram_quantile(0.5,"
                f" {_rate('tta_arm_first_token_seconds_bucket', 'le, experiment, arm')})",
                "{{experiment}}/{{arm}}",
            ),
        ),
        "s",
        needs="a running experiment",
    ),
    Panel(
        "Sample ratio: p-value of the split",
        (Curve("min by (experiment) (tta_sample_ratio_p)", "{{experiment}}"),),
        needs="a running experiment",
    ),
    Panel(
        "Outcomes that were sent",
        (_rate_by("tta_feedback_total", "status"),),
        needs="feedback",
    ),
    Panel(
        "Exposures that wait, and that are lost",
        (
            Curve("sum (tta_exposures_waiting)", "waiting"),
            Curve("sum (tta_exposures_dropped)", "lost"),
        ),
    ),
    Panel(
        "Arms stopped by a guardrail",
        (Curve("sum by (experiment, arm) (tta_arms_stopped_total)", "{{experiment}}/{{arm}}"),),
        needs="a guardrail that stopped an arm",
    ),
    Panel("Kill switch", (Curve("max (tta_kill_switch)", "on"),)),
    Panel(
        "Shadow policies",
        (_rate_by("tta_shadow_requests_total", "policy, found"),),
        needs="a shadow policy",
    ),
)

DASHBOARDS = (
    Dashboard("overview", "tta-serve: overview", _OVERVIEW),
    Dashboard("merging", "tta-serve: merging", _MERGING),
    Dashboard("engine", "tta-serve: engine", _ENGINE),
    Dashboard("tenants", "tta-serve: tenants", _TENANTS),
    Dashboard("experiments", "tta-serve: experiments", _EXPERIMENTS),
)
