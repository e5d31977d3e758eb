"""What the log says of one request, filled on its way."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tta_serve.protocol import MergeInfo
from tta_serve.store.redact import redact

if TYPE_CHECKING:
    from tta_serve.engine.client.usage import Usage

logger = logging.getLogger("tta_serve.requests")

SUMMARY = "tta.summary"
"""The key of an ASGI scope under which the edge leaves a `RequestSummary`."""
REQUEST_ID: ContextVar[str | None] = ContextVar("tta_request_id", default=None)
"""The id of the request in whose context something is logged."""

_MOST_NAME = 128
_MOST_PROMPT = 4096
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/ping", "/load"})
_SERVERS_FAULT = 500


@dataclass
class RequestSummary:
    """What is said of one request; what stays None is left out."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    """When it came, by the monotonic clock."""
    status: int | None = None
    """Of HTTP; None if its client left before."""
    error: str | None = None
    """The kind of what went wrong, as the `code` of the answer's error has it."""
    key: str | None = None
    """The label of its key."""
    tenant: str | None = None
    model: str | None = None
    policy: str | None = None
    outcome: str | None = None
    """How it ended, as `metrics.requests` counts it."""
    info: MergeInfo | None = None
    """What was decided for the first of its prompts."""
    usage: "Usage | None" = None
    prompt: str | None = None
    """What the operator wants to see of its text."""
    trace_id: str | None = None

    def name_model(self, model: str | None) -> None:
        """Note which model it asks for: any text of its client, cut to what can be written."""
        self.model = model and model[:_MOST_NAME].encode(errors="replace").decode()

    def write(self) -> None:
        """Write its line."""
        if self.status is not None and self.status >= _SERVERS_FAULT:
            level = logging.ERROR
        else:
            level = logging.DEBUG if self.path in _QUIET and not self.error else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra={"request_id": self.id, **self._describe()})

    def _describe(self) -> dict[str, Any]:
        said = {
            "method": self.method,
            "path": self.path[:_MOST_NAME],
            "status": self.status,
            "outcome": self.outcome or self._find_outcome(),
            "error": self.error,
            "seconds": round(time.perf_counter() - self.began, 6),
            "key": self.key,
            "tenant": self.tenant,
            "model": self.model,
            "policy": self.policy,
            **self._describe_merge(),
            **self._describe_usage(),
            "prompt": self.prompt and redact(self.prompt[:_MOST_PROMPT]),
            "trace_id": self.trace_id,
        }
        return {name: value for name, value in said.items() if value is not None}

    def _find_outcome(self) -> str | None:
        """Return how a request ended that did not come as far as to generate."""
        if self.status is None:
            return "aborted"
        return "error" if self.error else None

    def _describe_merge(self) -> dict[str, Any]:
        if self.info is None:
            return {}
        kept = {"arm", "experts", "mix", "abstained", "kept", "fallback"}
        return {
            **self.info.model_dump(mode="json", include=kept),
            "router_seconds": round(self.info.router_ms / 1000, 6),
        }

    def _describe_usage(self) -> dict[str, Any]:
        usage = self.usage
        if usage is None or usage.first is None:
            return {}
        return {
            "first_token_seconds": round(usage.first - self.began, 6),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish_reason": usage.finish_reason,
        }
