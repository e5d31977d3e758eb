"""The running server, asked over HTTP as clients and operators do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import httpx
import openai

from router.probing import gather_all
from tta_serve.evaluation.arms import MixRequest, RequestFactory
from tta_serve.evaluation.results import PolicyDecision
from tta_serve.metrics import sum_samples

LIMIT_S = 600
"""How long an answer is waited for, s."""
AT_ONCE = 16
"""How many requests are under way at a time."""

T = TypeVar("T")
Step = Callable[[str, int], Callable[[], None]]
"""Begins a step with a title and so many parts, and returns what tells that one is done."""
AnswerKey = tuple[str, MixRequest, int, tuple[str, ...]]
"""What an answer hangs on: the prompt, the mix, its most tokens and its stops."""


@dataclass
class AnswerMemo:
    """What was asked once and is not asked again, of any server."""

    answers: dict[AnswerKey, str] = field(default_factory=dict)
    """Greedy answers."""
    samples: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    """By question, the tokens of an answer at temperature 1, and where it begins among them."""
    logprobs: dict[tuple[int, MixRequest], list[float]] = field(default_factory=dict)
    """By question and mix, the log-probabilities of a sample's tokens but the first."""


class ServerClient:
    """One server, as an asynchronous context manager.

    Args:
        url: The server's address.
        key: The admin key.
        requests: Makes requests for mixes.
        api_key: The key of whoever asks for answers, of a server that wants one.
    """

    def __init__(
        self, url: str, key: str, requests: RequestFactory, api_key: str = "unused"
    ) -> None:
        self.requests = requests
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=LIMIT_S
        )
        headers = {"authorization": f"Bearer {key}"}
        self._admin = httpx.AsyncClient(base_url=url, headers=headers, timeout=LIMIT_S)

    async def __aenter__(self) -> ServerClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._openai.close()
        await self._admin.aclose()

    async def answer(self, prompt: str, asked: MixRequest, most: int, **more: Any) -> Any:
        """Return a completion of at most so many tokens, greedy unless `more` says otherwise."""
        options: dict[str, Any] = {"temperature": 0, **more}
        extra = asked.extra | options.pop("extra_body", {})
        return await self._openai.chat.completions.create(
            model=asked.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=most,
            extra_body=extra,
            extra_headers=_make_headers(asked),
            **options,
        )

    async def sample(
        self, prompt: str, asked: MixRequest, most: int, seed: int
    ) -> tuple[list[int], int]:
        """Draw an answer at temperature 1.

        Returns:
            The tokens of prompt and answer, and how many are the prompt's.
        """
        extra = {"return_token_ids": True}
        found = await self.answer(prompt, asked, most, temperature=1, seed=seed, extra_body=extra)
        return [*found.prompt_token_ids, *found.choices[0].token_ids], len(found.prompt_token_ids)

    async def read_logprobs(self, tokens: Sequence[int], asked: MixRequest) -> list[float]:
        """Return log p(token | those before it), in nats, of every token but the first."""
        extra = {**asked.extra, "prompt_logprobs": 0}
        found: Any = await self._openai.completions.create(
            model=asked.model,
            prompt=list(tokens),
            max_tokens=1,
            temperature=0,
            extra_body=extra,
            extra_headers=_make_headers(asked),
        )
        places = found.choices[0].prompt_logprobs[1:]
        return [
            float(place[str(token)]["logprob"])
            for place, token in zip(places, tokens[1:], strict=True)
        ]

    async def tokenize(self, **text: Any) -> list[int]:
        """Return the tokens of a bare text, `prompt`, or of `messages` in the chat template."""
        headers = {"authorization": f"Bearer {self._openai.api_key}"}
        body = {"model": self.requests.served, **text}
        found = await self._call("POST", "/tokenize", json=body, headers=headers)
        return list(found.json()["tokens"])

    async def explain(self, prompt: str, policies: Sequence[str]) -> dict[str, PolicyDecision]:
        """Ask what policies do with a prompt, and return that by their names."""
        body = {"prompt": prompt, "policies": list(policies)}
        answer = await self._call("POST", "/admin/policies/explain", json=body)
        return {
            row["policy"]: PolicyDecision(
                row["experts"],
                row["reason"],
                row["fallback"],
                row["router_ms"],
                row["passes"],
                row["then"],
            )
            for row in answer.json()["policies"]
        }

    async def list_pins(self) -> list[str]:
        """List what can be pinned: the base, experts, entries."""
        models = [model.id async for model in self._openai.models.list()]
        return [model.partition(":")[2] for model in models if ":" in model]

    async def unload(self, expert: str) -> str | None:
        """Unload an expert.

        Returns:
            The server's refusal, if there is one.
        """
        replicas = (await self._call("GET", "/admin/experts")).json()["replicas"]
        answer = await self._admin.delete(
            f"/admin/experts/{expert}", params={"digest": replicas[0]["experts"][expert]}
        )
        return None if answer.is_success else str(answer.json()["error"]["message"])

    async def load(self, expert: str) -> None:
        """Load an expert that was unloaded."""
        await self._call("PUT", f"/admin/experts/{expert}")

    async def count_prefix_cache(self) -> tuple[float, float]:
        """Return how many tokens all replicas have found in and looked up in the prefix cache."""
        text = (await self._call("GET", "/metrics")).text
        hits = sum_samples(text, "vllm:prefix_cache_hits_total")
        queries = sum_samples(text, "vllm:prefix_cache_queries_total")
        return hits, queries

    async def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return (await self._admin.request(method, path, **more)).raise_for_status()


async def run_all(
    jobs: Iterable[Callable[[], Awaitable[T]]], advance: Callable[[], None], at_once: int = AT_ONCE
) -> list[T]:
    """Run jobs, so many at a time, and return their results in order.

    The first that fails ends them all.
    """

    async def run(job: Callable[[], Awaitable[T]]) -> T:
        found = await job()
        advance()
        return found

    return await gather_all(run, jobs, at_once)


def _make_headers(asked: MixRequest) -> dict[str, str]:
    """Return headers by which all requests with a pinned model are of one conversation.

    A server that learns from pinned requests counts that once: questions are not to teach it.
    """
    return {"x-session-id": "tta-eval"} if ":" in asked.model else {}
