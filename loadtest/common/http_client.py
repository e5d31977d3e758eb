"""The client of benchmarks over HTTP: vLLM's own, and prompts of one length."""

import asyncio
import contextlib
import gc
import io
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from transformers import AutoTokenizer
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.serve import TaskType, benchmark

from loadtest.common.load_figures import OBJECTIVES_MS, LoadFigures, make_figures
from loadtest.common.workload import EXPERTS, ROOT
from tta_serve.metrics import sum_samples

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
EVERYDAY = ROOT / "router" / "everyday.txt"
_LIMIT_S = 900.0


@dataclass(frozen=True)
class RequestLoad:
    """What is sent to a server, and how fast."""

    prompts: Sequence[str]
    """One for each request."""
    at_once: int | None
    """Most requests under way, None for as many as come."""
    bodies: Sequence[Mapping[str, Any]] = ()
    """What each request says beside the usual, in order; none for nothing."""
    rate: float = math.inf
    """Requests a second, which come by chance; infinite for as soon as they may."""
    burstiness: float = 1.0
    """The shape of the gamma distribution of the gaps: 1 is a Poisson process, less has bursts."""
    times: Sequence[float] = ()
    """When each request is sent, in seconds after the first, in place of `rate`; none for that."""
    seed: int = 0
    """Of when they come."""
    tokens: int = ANSWER_TOKENS
    """Of each answer."""
    read: int = PROMPT_TOKENS
    """Tokens of each prompt."""
    key: str | None = None
    """What the client says who it is by; None for nothing."""


class LateError(RuntimeError):
    """A server has not answered all requests in time."""


class PromptSupply:
    """Texts of exactly so many tokens, each asked for once."""

    def __init__(self, base: Path, seed: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(str(base))
        self._rng = random.Random(f"edge/{seed}")
        self._everyday = [EVERYDAY.read_text(encoding="utf-8").splitlines()]
        files = sorted(EXPERTS.glob("*/examples.txt"))
        self._tasks = [file.read_text(encoding="utf-8").splitlines() for file in files]
        self._given: set[str] = set()

    def draw_everyday(self, count: int) -> list[str]:
        """Draw prompts of questions that no expert should answer."""
        return [self._one(self._everyday) for _ in range(count)]

    def draw_tasks(self, count: int, tokens: int = PROMPT_TOKENS) -> list[str]:
        """Draw prompts, each of one expert's examples."""
        return [self._one(self._tasks, tokens) for _ in range(count)]

    def _one(self, kinds: Sequence[Sequence[str]], tokens: int = PROMPT_TOKENS) -> str:
        """Draw lines of one kind in random order, cut to length.

        A text whose tokens the cut changes is thrown away.
        """
        while True:
            # A long one has the same line more than once.
            lines = [*self._rng.choice(kinds)] * math.ceil(tokens / PROMPT_TOKENS)
            text = "\n".join(self._rng.sample(lines, min(len(lines), tokens)))
            cut: str = self._tokenizer.decode(self._ids(text)[:tokens])
            if len(self._ids(cut)) == tokens and cut not in self._given:
                self._given.add(cut)
                return cut

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text).input_ids
        return ids


def warm_up(
    url: str,
    model: str,
    prompts: Sequence[str],
    bodies: Sequence[Mapping[str, Any]] = (),
    key: str | None = None,
) -> None:
    """Ask all at once for short answers; nothing is measured."""
    few = ANSWER_TOKENS // 4
    load(url, model, RequestLoad(prompts, len(prompts), bodies, tokens=few, key=key))


def load(url: str, model: str, sent: RequestLoad) -> LoadFigures:
    """Stream completions, greedily, each of exactly as many tokens as were asked for, or fail.

    Raises:
        LateError: They were not all there in time.
    """
    # By this vLLM draws when requests come.
    np.random.seed(sent.seed)
    gc.collect()
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = asyncio.run(asyncio.wait_for(_benchmark(url, model, sent), _LIMIT_S))
    except TimeoutError as error:
        count = len(sent.prompts)
        message = f"{model} at {url} did not answer {count} requests in {_LIMIT_S:.0f} s"
        raise LateError(message) from error
    errors = [error for error in found["errors"] if error]
    assert not errors, f"{model} at {url}: {errors[0]}"
    read, written = set(found["input_lens"]), set(found["output_lens"])
    assert read == {sent.read}, f"prompts of {read} tokens"
    assert written == {sent.tokens}, f"answers of {written} tokens"
    return make_figures(found, (time.process_time() - began) / found["duration"])


async def _benchmark(url: str, model: str, sent: RequestLoad) -> dict[str, Any]:
    found: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{url}/v1/completions",
        base_url=url,
        model_id=model,
        model_name=model,
        tokenizer=None,
        input_requests=_requests(sent),
        logprobs=None,
        request_rate=sent.rate,
        burstiness=sent.burstiness,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=[],
        selected_percentiles=[],
        ignore_eos=True,
        goodput_config_dict=OBJECTIVES_MS,
        max_concurrency=sent.at_once,
        lora_modules=None,
        extra_headers={"Authorization": f"Bearer {sent.key}"} if sent.key else None,
        extra_body={"temperature": 0},
        ready_check_timeout_sec=0,
        self_timed=bool(sent.times),
    )
    return found


def _requests(sent: RequestLoad) -> list[SampleRequest]:
    sizes = {"prompt_len": sent.read, "expected_output_len": sent.tokens}
    bodies = sent.bodies or [{}] * len(sent.prompts)
    times: Sequence[float | None] = sent.times or [None] * len(sent.prompts)
    return [
        SampleRequest(prompt=prompt, request_overrides=dict(body), timestamp=time_s, **sizes)
        for prompt, body, time_s in zip(sent.prompts, bodies, times, strict=True)
    ]


def ask_merges(
    url: str, prompts: Sequence[str], body: Mapping[str, Any] = {}
) -> list[dict[str, Any]]:
    """Return what our server says in `merge` of each prompt, one asked after the other.

    Args:
        url: The server's address.
        prompts: Each is asked for one token.
        body: What else each request says.
    """
    return [_ask_merge(url, prompt, body) for prompt in prompts]


def _ask_merge(url: str, prompt: str, body: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, **body}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    merge: Any = answer.raise_for_status().json()["merge"]
    first: dict[str, Any] = merge[0] if isinstance(merge, list) else merge
    return first


def count_fallbacks(url: str) -> float:
    """Return how many requests of our server were answered by a policy's fallback so far."""
    text = httpx.get(f"{url}/metrics", timeout=60).raise_for_status().text
    return sum_samples(text, "tta_fallbacks_total")


class FirstTokenClock:
    """What an engine of vLLM says itself of its first tokens, from now on.

    Args:
        url: The address of its server, vLLM's or ours.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._began = self._read()

    def read_mean_ms(self) -> float | None:
        """Return the mean time since, ms: from a request's arrival there to its first token.

        None where the server counts none.
        """
        seconds, count = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return 1e3 * seconds / count if count else None

    def _read(self) -> list[float]:
        answer = httpx.get(f"{self._url}/metrics", timeout=60)
        said = answer.text if answer.status_code == httpx.codes.OK else ""
        name = "vllm:time_to_first_token_seconds"
        return [sum_samples(said, f"{name}_{part}") for part in ("sum", "count")]
