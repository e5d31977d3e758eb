"""The server's side of the engine: run prompts as mixes, decided or not, and probe."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from adapters.mix import Mix, MixRules
from router import turns
from router.inline import Head
from router.policy import Activations, Outputs, Prompt, Window
from tta_serve.engine import wire
from tta_serve.engine.wire import Said, said_of
from tta_serve.engine.workers import Workers


class ProbeError(RuntimeError):
    """The engine did not observe a probe as it was sent, or cannot observe its kind."""


class Undecided(NamedTuple):
    """A request whose turn is read in the pass that answers it.

    adapter: how it starts   text: of the turn, None if it is the whole prompt
    settle: called with what the pass said, None if the turn could not be read   follows: an earlier turn, whose mix it has;
    then settle may return another adapter, with which the request starts anew before anything of its answer is seen
    """

    adapter: LoRARequest
    text: str | None
    settle: Callable[[Said | None], LoRARequest | None]
    follows: bool = False


class EngineCall(NamedTuple):
    """One prompt that vLLM's serving layer hands to its engine. options: the other arguments of `generate`"""

    prompt: Any
    params: SamplingParams
    name: str
    options: Mapping[str, Any] = {}

    @property
    def tokens(self) -> Sequence[int]:
        """Of the prompt."""
        return self.prompt["prompt_token_ids"]  # type: ignore[no-any-return]


class Owner(Protocol):
    """The HTTP request that prompts belong to: it decides how each is run.

    model: the name that it was asked under   asked: whether a prompt of it has come to the engine
    """

    @property
    def model(self) -> str | None: ...

    @property
    def asked(self) -> bool: ...

    def answer(self, call: EngineCall) -> AsyncIterator[Any]:
        """The engine's outputs of one of its prompts."""
        ...


OWNER: ContextVar[Owner | None] = ContextVar("tta_owner", default=None)


class EngineClient:
    """Around vLLM's started asynchronous engine, in place of whose `generate` it stands from then on."""

    def __init__(self, llm: Any, max_probe_tokens: int) -> None:
        """max_probe_tokens: that routing reads of a prompt"""
        self._llm = llm
        self._generate = self._llm.generate
        self._llm.generate = self._generating
        self.workers = Workers(self._llm.collective_rpc)
        self.vocabulary = int(self._llm.model_config.get_vocab_size())
        self._max_probe_tokens = min(max_probe_tokens, self._llm.model_config.max_model_len - 1)
        self._kinds: list[str] | None = None
        _drop_lora_gauge(self._llm)

    def _generating(self, prompt: Any, params: SamplingParams, name: str, **options: Any) -> AsyncIterator[Any]:
        """In place of vLLM's `generate`: a prompt of an HTTP request is run as that request decides."""
        options.pop("lora_request", None)
        call, owner = EngineCall(prompt, params, name, options), OWNER.get()
        self._check_tokens(call.tokens)
        return self.run(call) if owner is None else owner.answer(call)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises VLLMValidationError for a token that the base's embedding has no row for; vLLM lets the first one pass."""
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.vocabulary):
            wrong = next(token for token in tokens if not 0 <= token < self.vocabulary)
            raise VLLMValidationError(
                f"token id {wrong} is out of the vocabulary, whose ids are 0 to {self.vocabulary - 1}", parameter="prompt"
            )

    def run(self, call: EngineCall, adapter: LoRARequest | Undecided | None = None) -> AsyncIterator[Any]:
        """The outputs of a prompt that runs with a mix, decided or not. adapter: None for the base"""
        if isinstance(adapter, Undecided):
            return self._deciding(call, adapter)
        outputs: AsyncIterator[Any] = self._generate(call.prompt, call.params, call.name, lora_request=adapter, **call.options)
        return outputs

    async def _deciding(self, call: EngineCall, undecided: Undecided) -> AsyncIterator[Any]:
        asked = call.params
        whole = undecided.follows and asked.n == 1 and asked.output_kind == RequestOutputKind.FINAL_ONLY
        if whole:  # its first token tells whether the topic has changed
            asked = asked.clone()
            asked.output_kind = RequestOutputKind.CUMULATIVE
        adapter = wire.with_turn(undecided.adapter, self._turn(call.tokens, undecided.text))
        other, settled = None, False
        outputs: Any = self.run(call._replace(params=asked), adapter)
        async with aclosing(outputs):
            async for output in outputs:
                said = said_of(output)
                if not settled:
                    other, settled = undecided.settle(said), True
                if other is not None:
                    break
                if output.finished or not whole:
                    yield output
        if other is not None:
            async for output in self.run(call._replace(name=f"{call.name}-moved"), other):
                yield output

    def _turn(self, tokens: Sequence[int], text: str | None) -> tuple[int, int]:
        """Which tokens of a prompt are the user's turn, the first of them as far as routing reads; all if it is not found."""
        found = None
        if text is not None:
            found = turns.span(tokens, self._llm.get_tokenizer().encode(text.strip(), add_special_tokens=False))
        start, end = found or (0, len(tokens))
        return start, min(end, start + self._max_probe_tokens)

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        """Run a text through the base; the mean over its last tokens of the tapped layer's input. [hidden]

        chat: as a user turn in the base's chat template, the mean over the first tokens of the turn. Raises ProbeError if the
        engine reads no features, or if the worker did not see the tokens as they were sent (a preempted probe).
        """
        tokens, turn = self._tokens(text), None
        if chat:
            tokens, turn = self._templated(text), text
        await self._observes("features")
        start, end = self._turn(tokens, turn)
        output = await self._run(tokens[:end], 1, wire.probe_request("features"), (start, end))
        said = said_of(output)
        if said is None:
            raise ProbeError(f"a probe (features) of {len(tokens)} tokens was not observed as it was sent; was it preempted?")
        return torch.tensor(said["features"])

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
            tokens += (await self._run(tokens, window.draft)).outputs[0].token_ids
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

    async def install(self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules) -> str:
        """As `Workers.install`."""
        return await self.workers.install(heads, digests, rules)

    async def step(self) -> None:
        """Run a token of the base: workers hear of a request's end with the next step, which an idle engine does not make."""
        await self._run([0], 1)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The last tokens of what the base would be asked: a user turn is in its chat template, if it has one."""
        tokens = self._templated(prompt.user_turn) if prompt.chat else self._tokens(prompt.user_turn)
        return tokens[-self._max_probe_tokens :]

    def _templated(self, text: str) -> list[int]:
        """A text as a user turn in the base's chat template, if it has one, as far as the engine takes it."""
        tokenizer = self._llm.get_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            return self._tokens(text)
        return turns.tokens(tokenizer, text)[: self._llm.model_config.max_model_len - 1]

    def _tokens(self, text: str) -> list[int]:
        """The last tokens of a text."""
        tokens = self._llm.get_tokenizer().encode(text, add_special_tokens=False)
        return list(tokens[-self._max_probe_tokens :])

    def text(self, tokens: list[int]) -> str:
        return str(self._llm.get_tokenizer().decode(tokens))

    async def _probed(self, kind: wire.Kind, tokens: list[int], rows: Sequence[LoRARequest]) -> Any:
        """What workers observed of rows of the same tokens."""
        await self._observes(kind)
        await asyncio.gather(*(self._run(tokens, 1, row) for row in rows))
        seen = await self.workers.take_probes(kind, [row.lora_int_id for row in rows], tokens)
        if seen is None:
            raise ProbeError(f"a probe ({kind}) of {len(tokens)} tokens was not observed as it was sent; was it preempted?")
        return seen

    async def _observes(self, kind: wire.Kind) -> None:
        """Raises ProbeError if the engine does not."""
        if self._kinds is None:
            self._kinds = await self.workers.probe_kinds()
        if kind not in self._kinds:
            raise ProbeError(f"this engine observes no {kind}; start it with enforce_eager, and for features with a tap layer")

    async def _run(
        self, tokens: list[int], most: int, adapter: LoRARequest | None = None, turn: tuple[int, int] | None = None
    ) -> Any:
        """The output with at most so many tokens of a greedy answer."""
        params = SamplingParams(max_tokens=most, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        if turn is not None:
            assert adapter is not None
            adapter = wire.with_turn(adapter, turn)
        name = f"tta-{secrets.token_hex(8)}"
        outputs = self._generate({"prompt_token_ids": tokens}, params, name, lora_request=adapter)
        return [output async for output in outputs][-1]


def _drop_lora_gauge(llm: Any) -> None:
    """vLLM's `lora_requests_info` makes a new time series for every combination of mixes ever run together: switch it off."""
    if llm.logger_manager is not None:
        for logger in llm.logger_manager.stat_loggers:
            if getattr(logger, "gauge_lora_info", None) is not None:
                logger.gauge_lora_info = None
