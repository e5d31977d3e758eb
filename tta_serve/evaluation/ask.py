"""The running server, asked over HTTP as clients and operators do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import httpx
import openai

from tta_serve.evaluation.arms import Asked, Names
from tta_serve.evaluation.results import Decided

LIMIT_S = 600
AT_ONCE = 16

T = TypeVar("T")
Step = Callable[[str, int], Callable[[], None]]


@dataclass
class Memo:
    """What was asked once and is not asked again, of any server.

    answers: by prompt and mix   samples: tokens and where the answer begins, by question   logprobs: of a sample's tokens
    """

    answers: dict[tuple[str, Asked], str] = field(default_factory=dict)
    samples: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    logprobs: dict[tuple[int, Asked], list[float]] = field(default_factory=dict)


class Server:
    """One server, as an asynchronous context manager. key: the admin key   names: how mixes are asked for"""

    def __init__(self, url: str, key: str, names: Names) -> None:
        self.names = names
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=LIMIT_S)
        headers = {"authorization": f"Bearer {key}"}
        self._admin = httpx.AsyncClient(base_url=url, headers=headers, timeout=LIMIT_S)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()
        await self._admin.aclose()

    async def answer(self, prompt: str, asked: Asked, most: int, **more: Any) -> Any:
        """The completion, greedy unless `more` says otherwise, of at most so many tokens."""
        options: dict[str, Any] = {"temperature": 0, **more}
        extra = asked.extra | options.pop("extra_body", {})
        return await self._openai.chat.completions.create(
            model=asked.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=most,
            extra_body=extra,
            **options,
        )

    async def sampled(self, prompt: str, asked: Asked, most: int, seed: int) -> tuple[list[int], int]:
        """An answer at temperature 1. Returns the tokens of prompt and answer, and how many are the prompt's."""
        extra = {"return_token_ids": True}
        found = await self.answer(prompt, asked, most, temperature=1, seed=seed, extra_body=extra)
        return [*found.prompt_token_ids, *found.choices[0].token_ids], len(found.prompt_token_ids)

    async def logprobs(self, tokens: Sequence[int], asked: Asked) -> list[float]:
        """log p(token | those before it), in nats, of every token but the first."""
        extra = {**asked.extra, "prompt_logprobs": 0}
        found: Any = await self._openai.completions.create(
            model=asked.model, prompt=list(tokens), max_tokens=1, temperature=0, extra_body=extra
        )
        places = found.choices[0].prompt_logprobs[1:]
        return [float(place[str(token)]["logprob"]) for place, token in zip(places, tokens[1:], strict=True)]

    async def explain(self, prompt: str, policies: Sequence[str]) -> dict[str, Decided]:
        """What policies do with a prompt, by their names."""
        body = {"prompt": prompt, "policies": list(policies)}
        rows = (await self._call("POST", "/admin/policies/explain", json=body)).json()["policies"]
        return {
            row["policy"]: Decided(row["experts"], row["reason"], row["fallback"], row["router_ms"], row["passes"])
            for row in rows
        }

    async def pins(self) -> list[str]:
        """What can be pinned: the base, experts, entries."""
        models = [model.id async for model in self._openai.models.list()]
        return [model.partition(":")[2] for model in models if ":" in model]

    async def unload(self, expert: str) -> str | None:
        """Take an expert away. Returns the refusal, if there is one."""
        replicas = (await self._call("GET", "/admin/experts")).json()["replicas"]
        answer = await self._admin.delete(f"/admin/experts/{expert}", params={"digest": replicas[0]["experts"][expert]})
        return None if answer.is_success else str(answer.json()["error"]["message"])

    async def load(self, expert: str) -> None:
        await self._call("PUT", f"/admin/experts/{expert}")

    async def prefix_cache(self) -> tuple[float, float]:
        """Tokens found in the prefix cache, and tokens looked up, since the start, by all replicas."""
        text = (await self._call("GET", "/metrics")).text
        hits, queries = (_total(text, f"vllm:prefix_cache_{name}_total") for name in ("hits", "queries"))
        return hits, queries

    async def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return (await self._admin.request(method, path, **more)).raise_for_status()


async def each(jobs: Iterable[Callable[[], Awaitable[T]]], advance: Callable[[], None], at_once: int = AT_ONCE) -> list[T]:
    """What the jobs return, in their order, so many at a time. The first that fails ends them all."""
    room = asyncio.Semaphore(at_once)

    async def run(job: Callable[[], Awaitable[T]]) -> T:
        async with room:
            found = await job()
        advance()
        return found

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(job)) for job in jobs]
    return [task.result() for task in tasks]


def _total(text: str, name: str) -> float:
    """The sum of a counter's samples in Prometheus' text format."""
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
