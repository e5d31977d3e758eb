"""The client of `python -m loadtest edge`: vLLM's benchmark client, and prompts of one length."""

import asyncio
import contextlib
import gc
import io
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from transformers import AutoTokenizer
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.serve import TaskType, benchmark

from loadtest.common.workload import EXPERTS, ROOT

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
EVERYDAY = ROOT / "router" / "everyday.txt"


@dataclass(frozen=True)
class LoadFigures:
    """What a run of requests gave."""

    tok_s: float
    """Answered tokens per second of wall time."""
    ttft_ms: float
    """Milliseconds to the first token, the median over the requests."""
    tpot_ms: float
    """Milliseconds to each token after it, likewise."""
    client_cores: float
    """CPU seconds that the client took, per second."""


class PromptSupply:
    """Texts of exactly `PROMPT_TOKENS` tokens, each asked for once."""

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

    def draw_tasks(self, count: int) -> list[str]:
        """Draw prompts, each of one expert's examples."""
        return [self._one(self._tasks) for _ in range(count)]

    def _one(self, kinds: Sequence[Sequence[str]]) -> str:
        """Draw lines of one kind in random order, cut to length.

        A text whose tokens the cut changes is thrown away.
        """
        while True:
            lines = self._rng.choice(kinds)
            text = "\n".join(self._rng.sample(lines, min(len(lines), PROMPT_TOKENS)))
            cut: str = self._tokenizer.decode(self._ids(text)[:PROMPT_TOKENS])
            if len(self._ids(cut)) == PROMPT_TOKENS and cut not in self._given:
                self._given.add(cut)
                return cut

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text).input_ids
        return ids


def warm_up(url: str, model: str, prompts: Sequence[str]) -> None:
    """Ask all at once for short answers; nothing is measured."""
    _run(url, model, prompts, len(prompts), ANSWER_TOKENS // 4)


def load(url: str, model: str, prompts: Sequence[str], at_once: int) -> LoadFigures:
    """Stream completions, greedily, each of exactly `ANSWER_TOKENS` tokens, or fail."""
    return _run(url, model, prompts, at_once, ANSWER_TOKENS)


def _run(url: str, model: str, prompts: Sequence[str], at_once: int, tokens: int) -> LoadFigures:
    sizes = {"prompt_len": PROMPT_TOKENS, "expected_output_len": tokens}
    requests = [SampleRequest(prompt=prompt, **sizes) for prompt in prompts]
    gc.collect()
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        found = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai",
                api_url=f"{url}/v1/completions",
                base_url=url,
                model_id=model,
                model_name=model,
                tokenizer=None,
                input_requests=requests,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=at_once,
                lora_modules=None,
                extra_headers=None,
                extra_body={"temperature": 0},
                ready_check_timeout_sec=0,
            )
        )
    errors = [error for error in found["errors"] if error]
    assert not errors, f"{model} at {url}: {errors[0]}"
    read, written = set(found["input_lens"]), set(found["output_lens"])
    assert read == {PROMPT_TOKENS}, f"prompts of {read} tokens"
    assert written == {tokens}, f"answers of {written} tokens"
    ttft = median(found["ttfts"])
    tpot = median(sum(gaps) / (tokens - 1) for gaps in found["itls"])
    cores = (time.process_time() - began) / found["duration"]
    return LoadFigures(found["output_throughput"], 1e3 * ttft, 1e3 * tpot, cores)
