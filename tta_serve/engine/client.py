"""The server's side of the engine: bind mixes to OpenAI requests, and probe."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from adapters.mix import Mix
from router.policy import Activations, Outputs, Prompt, Window
from tta_serve.engine import wire
from tta_serve.engine.workers import Workers

_BOUND = "tta_lora_request"


class ProbeError(RuntimeError):
    """The engine did not observe a probe as it was sent, or cannot observe its kind."""


class EngineClient:
    """Around Ray's started `VLLMEngine`. served: the model name that answers carry, whatever the mix."""

    def __init__(self, engine: Any, served: str, max_probe_tokens: int) -> None:
        self._llm = engine._engine_client
        self.workers = Workers(self._llm.collective_rpc)
        self._served = served
        self._max_probe_tokens = min(max_probe_tokens, self._llm.model_config.max_model_len - 1)
        self._kinds: list[str] | None = None
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
        return torch.tensor(await self._probed("features", self._tokens(text), [wire.probe_request("features")]))

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window, digests: Mapping[str, str]) -> Outputs:
        """Run the prompt's last tokens through the base and each candidate, in one batch if there are slots for all.

        window.draft: fewer tokens if the base ends its answer. digests: of the experts that candidates name. nll is NaN where
        the window is one token. Raises ProbeError as `features` does, and if a prompt of one token leaves nothing to compare.
        """
        assert candidates, "nothing to compare with the base"
        if window.draft >= self._max_probe_tokens:
            raise ProbeError(f"a draft of {window.draft} tokens leaves no room; server.max_probe_tokens must be higher")
        tokens = self.prompt_tokens(prompt)[-(self._max_probe_tokens - window.draft) :]
        skip = max(0, len(tokens) - window.last)
        if window.draft:
            tokens += await self._run(tokens, window.draft, f"draft-{secrets.token_hex(8)}")
        if len(tokens) < 2:
            raise ProbeError("a comparison needs a prompt of two tokens, or a draft")
        rows = [wire.probe_request("compare", wire.content(mix, digests), skip) for mix in (Mix(), *candidates)]
        seen = await self._probed("compare", tokens, rows)
        return Outputs(**{name: torch.tensor(seen[name]) for name in ("js", "entropy", "nll")}, positions=seen["positions"])

    async def activations(self, text: str) -> Activations:
        """Run `text` through the base and project its last tokens' states on what each expert reads, by the experts' digests.

        Raises ProbeError as `features` does, and if there is no expert.
        """
        seen = await self._probed("activations", self._tokens(text), [wire.probe_request("activations")])
        tables = {name: torch.tensor(seen[name]) for name in ("arrow", "spectr", "norm", "residual", "inputs")}
        return Activations(tuple(seen["experts"]), tuple(seen["sites"]), **tables)

    async def step(self) -> None:
        """Run a token of the base: workers hear of a request's end with the next step, which an idle engine does not make."""
        await self._run([0], 1, f"step-{secrets.token_hex(8)}")

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The last tokens of what the base would be asked: a user turn is in its chat template, if it has one."""
        tokenizer, text = self._llm.get_tokenizer(), prompt.user_turn
        if prompt.chat and getattr(tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        tokens = self._llm.get_tokenizer().encode(text, add_special_tokens=False)
        return list(tokens[-self._max_probe_tokens :])

    def text(self, tokens: list[int]) -> str:
        return str(self._llm.get_tokenizer().decode(tokens))

    async def _probed(self, kind: wire.Kind, tokens: list[int], rows: Sequence[LoRARequest]) -> Any:
        """What workers observed of rows of the same tokens."""
        if self._kinds is None:
            self._kinds = await self.workers.probe_kinds()
        if kind not in self._kinds:
            raise ProbeError(f"this engine observes no {kind}; start it with enforce_eager, and for features with a tap layer")
        await asyncio.gather(*(self._run(tokens, 1, row.lora_name, row) for row in rows))
        seen = await self.workers.take_probes(kind, [row.lora_int_id for row in rows], tokens)
        if seen is None:
            raise ProbeError(f"a probe ({kind}) of {len(tokens)} tokens was not observed as it was sent; was it preempted?")
        return seen

    async def _run(self, tokens: list[int], most: int, name: str, adapter: LoRARequest | None = None) -> list[int]:
        """Returns at most so many tokens of a greedy answer."""
        params = SamplingParams(max_tokens=most, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        answer: list[int] = []
        async for output in self._llm.generate({"prompt_token_ids": tokens}, params, name, lora_request=adapter):
            answer = list(output.outputs[0].token_ids)
        return answer


def _bound_adapter(request: Any, supports_default_mm_loras: bool = False) -> Any:
    """In place of vLLM's look-up by model name in a dict that only grows: the request carries its adapter."""
    return getattr(request, _BOUND, None)


def _drop_lora_gauge(llm: Any) -> None:
    """vLLM's `lora_requests_info` makes a new time series for every combination of mixes ever run together: switch it off."""
    if llm.logger_manager is not None:
        for logger in llm.logger_manager.stat_loggers:
            if getattr(logger, "gauge_lora_info", None) is not None:
                logger.gauge_lora_info = None
