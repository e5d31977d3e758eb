"""What compiles, loads or is cached at its first use, used once before anybody is answered."""

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from tta_serve.engine.client.engine_client import EngineCall, EngineClient

_TOKENS = [0, 1, 2]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def warm_up(engine: EngineClient) -> None:
    """Run a few tokens with each of the features whose first use takes seconds."""
    kinds: list[dict[str, Any]] = [
        {"logprobs": 5},
        {"prompt_logprobs": 1},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 8, "min_p": 0.01, "seed": 1},
        {"logit_bias": {3: 1.0}, "min_tokens": 1},
        {"structured_outputs": StructuredOutputsParams(json=_SCHEMA)},
        {"structured_outputs": StructuredOutputsParams(regex="[ab]+")},
    ]
    for number, kind in enumerate(kinds):
        params = SamplingParams(
            **{"temperature": 0.0, "max_tokens": 4, "output_kind": RequestOutputKind.FINAL_ONLY}
            | kind
        )
        outputs = engine.run(
            EngineCall({"prompt_token_ids": _TOKENS}, params, f"tta-warm-up-{number}")
        )
        async for _ in outputs:
            pass
