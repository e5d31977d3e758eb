"""The server's side of the engine: bind mixes to OpenAI requests, and probe."""

import secrets
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams

from adapters.mix import Mix
from tta_serve.engine import wire
from tta_serve.engine.workers import Workers

_BOUND = "tta_lora_request"


class ProbeError(RuntimeError):
    """The engine did not return the features of a probe."""


class EngineClient:
    """Around Ray's started `VLLMEngine`. served: the model name that answers carry, whatever the mix."""

    def __init__(self, engine: Any, served: str, max_probe_tokens: int) -> None:
        self._llm = engine._engine_client
        self.workers = Workers(self._llm.collective_rpc)
        self._served = served
        self._max_probe_tokens = max_probe_tokens
        for serving in (engine._oai_serving_chat, engine._oai_serving_completion):
            serving._maybe_get_adapters = _bound_adapter
        engine._oai_models.model_name = lambda lora_request=None: served
        _drop_lora_gauge(self._llm)

    def bind(self, request: Any, mix: Mix, digests: Mapping[str, str]) -> None:
        """Make vLLM answer this OpenAI request with `mix`, under the served name. digests: of the experts it names."""
        request.model = self._served
        setattr(request, _BOUND, wire.mix_request(mix, digests))

    async def features(self, text: str) -> Tensor:
        """Run `text` through the base and return the mean of the tapped layer's input over its last tokens. [hidden]

        Raises ProbeError if the worker saw other tokens than were sent (a preempted probe).
        """
        tokens = self._tokens(text)
        probe = wire.probe_request()
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        async for _ in self._llm.generate({"prompt_token_ids": tokens}, params, probe.lora_name, lora_request=probe):
            pass
        seen = await self.workers.take_features(probe.lora_int_id)
        if seen is None or seen[0] != len(tokens):
            raise ProbeError(f"probe of {len(tokens)} tokens came back as {seen and seen[0]}")
        return torch.tensor(seen[1])

    async def step(self) -> None:
        """Run a token of the base: workers hear of a request's end with the next step, which an idle engine does not make."""
        params = SamplingParams(max_tokens=1, detokenize=False)
        async for _ in self._llm.generate({"prompt_token_ids": [0]}, params, f"step-{secrets.token_hex(8)}"):
            pass

    def _tokens(self, text: str) -> list[int]:
        tokens = self._llm.get_tokenizer().encode(text, add_special_tokens=False)
        return list(tokens[-self._max_probe_tokens :])

    def text(self, tokens: list[int]) -> str:
        return str(self._llm.get_tokenizer().decode(tokens))


def _bound_adapter(request: Any, supports_default_mm_loras: bool = False) -> Any:
    """In place of vLLM's look-up by model name in a dict that only grows: the request carries its adapter."""
    return getattr(request, _BOUND, None)


def _drop_lora_gauge(llm: Any) -> None:
    """vLLM's `lora_requests_info` makes a new time series for every combination of mixes ever run together: switch it off."""
    if llm.logger_manager is not None:
        for logger in llm.logger_manager.stat_loggers:
            if getattr(logger, "gauge_lora_info", None) is not None:
                logger.gauge_lora_info = None
