"""The catalogue of our metrics, made of what the server declares."""

from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from tta_serve import metrics

_HEAD = """# Metrics

What `/metrics` has of ours, beside vLLM's own (`vllm:...`); `python -m deploy.monitoring` makes
this page. Every sample also has the label `replica`. A counter's samples end in `_total`, a
histogram's in `_bucket`, `_sum` and `_count`. A label has no more values than the config has
policies and keys, the library experts, the store experiments and the server kinds of errors: what
clients make up is never one.

| name | type | labels | meaning |
| --- | --- | --- | --- |
"""

_FOOT = """
## OpenTelemetry's names

What the conventions for generative AI call otherwise (`gen_ai.token.type` is our `kind`, whose
`prompt` is their `input` and whose `completion` their `output`):

| OpenTelemetry's metric | ours |
| --- | --- |
| `gen_ai.server.request.duration` | `tta_request_seconds` |
| `gen_ai.server.time_to_first_token` | `tta_first_token_seconds` |
| `gen_ai.server.time_per_output_token` | `tta_next_token_seconds` |
| `gen_ai.client.token.usage` | `tta_tokens` |

`policy` takes the place of `gen_ai.request.model`, which clients may choose freely; `tta_failures`
has what `error.type` says.
"""


def find_metrics() -> Iterator[MetricWrapperBase]:
    """Return what `tta_serve.metrics` declares, by name."""
    declared = [one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)]
    assert all(one in REGISTRY._collector_to_names for one in declared)
    yield from sorted(declared, key=lambda one: str(one._name))


def make_catalogue() -> str:
    """Return the page."""
    rows = [
        f"| `{one._name}` | {one._type} | {', '.join(one._labelnames)} | {one._documentation} |"
        for one in find_metrics()
    ]
    return _HEAD + "\n".join(rows) + "\n" + _FOOT
