"""vLLM's own bench client, by its functions: the command does not start in the CPU build."""

import asyncio
from typing import Any

from tests.clients import asked

REQUESTS, OUTPUT = 4, 8


def bench(kind: str, path: str) -> dict[str, Any]:
    """The results of a few requests, two at a time."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark
    from vllm.tokenizers import get_tokenizer

    request = SampleRequest(prompt=asked.QUESTION, prompt_len=20, expected_output_len=OUTPUT)
    results = benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type=kind,
        api_url=asked.server() + path,
        base_url=asked.server(),
        model_id=asked.ROUTED,
        model_name=asked.ROUTED,
        tokenizer=get_tokenizer(asked.base_folder()),
        input_requests=[request] * REQUESTS,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=["ttft", "tpot", "itl"],
        selected_percentiles=[50.0],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=2,
        lora_modules=None,
        extra_headers=None,
        extra_body={"merge": asked.MERGE, "temperature": 0},
        ready_check_timeout_sec=30,
    )
    found: dict[str, Any] = asyncio.run(results)
    return found


def ensure_served(kind: str, path: str) -> None:
    """All requests were answered, in streams of as many tokens as were asked for."""
    found = bench(kind, path)
    asked.ensure(found["completed"] == REQUESTS, f"{found['completed']} of {REQUESTS} requests")
    tokens = set(found["output_lens"])
    asked.ensure(tokens == {OUTPUT}, f"output tokens {tokens}, not {OUTPUT}")
    asked.ensure(found["median_ttft_ms"] > 0, "no time to the first token")


def chat() -> None:
    """Chat completions."""
    ensure_served("openai-chat", "/v1/chat/completions")


def completions() -> None:
    """Completions."""
    ensure_served("openai", "/v1/completions")


if __name__ == "__main__":
    asked.run(chat, completions)
