"""A server of completions that has no engine: it answers `t` for every token."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loadtest.common.http_client import PROMPT_TOKENS
from tests.factories.http_handler import serve_handler

FIRST_S, NEXT_S = 0.03, 0.01
METRICS = """# TYPE tta_fallbacks_total counter
tta_fallbacks_total{policy="a"} 2.0
tta_fallbacks_total{policy="b"} 3.0
tta_requests_total{policy="a"} 50.0
"""
ENGINE_S = 0.02
ENGINE = """# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {count}
vllm:time_to_first_token_seconds_sum {seconds}
vllm:time_to_first_token_seconds_count {count}
"""


@dataclass
class CompletionServer:
    """A server of completions that answers one request after the other."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    first_s: Callable[[dict[str, Any]], float] = lambda body: FIRST_S
    next_s: float = NEXT_S

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        time.sleep(self.first_s(body))
        for i in range(body["max_tokens"]):
            if i:
                time.sleep(self.next_s)
            yield {"choices": [{"text": "t"}]}
        counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": body["max_tokens"]}
        yield {"choices": [], "usage": counts}


@contextmanager
def serve_completions() -> Iterator[CompletionServer]:
    server = CompletionServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = len(server.bodies)
            text = METRICS + ENGINE.format(seconds=ENGINE_S * count, count=count)
            self._answer(404 if self.path.startswith("/gone") else 200, text.encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.bodies.append(body)
            if body["model"] == "gone":
                self._answer(404, b"{}")
            elif not body.get("stream"):
                merge = {"experts": {"sql": 1.0}, "router_ms": 2.0, "asked": body["prompt"]}
                self._answer(200, json.dumps({"merge": [merge]}).encode())
            else:
                self.send_response(200)
                self.end_headers()
                for event in server.stream(body):
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")

        def _answer(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    with serve_handler(Handler) as server.url:
        yield server
