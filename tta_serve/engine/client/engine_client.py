"""The server's side of the engine: it runs prompts as mixes, decided or not, and probes."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from torch import Tensor
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.probing import Activations, Outputs, Window
from router.scoring import chat_turns
from router.scoring.heads import Head
from tta_serve.engine import wire
from tta_serve.engine.client.placement import PromptPlacer
from tta_serve.engine.client.worker_rpc import Workers
from tta_serve.engine.wire import InlineDecision


class ProbeError(RuntimeError):
    """The engine did not observe a probe as it was sent, or cannot observe its kind."""


class UndecidedRequest(NamedTuple):
    """A request whose turn is read in the pass that answers it."""

    adapter: LoRARequest
    """What the engine runs it as."""
    settle: Callable[[InlineDecision | None], None]
    """Takes what the pass decided, None if the turn could not be read."""


class EngineCall(NamedTuple):
    """One prompt that vLLM's serving layer hands to its engine."""

    prompt: Any
    params: SamplingParams
    name: str
    options: Mapping[str, Any] = {}
    """The other arguments of `generate`."""

    @property
    def tokens(self) -> Sequence[int]:
        """The prompt's token ids."""
        return self.prompt["prompt_token_ids"]  # type: ignore[no-any-return]

    def traced_by(self, headers: Mapping[str, str]) -> "EngineCall":
        """Return the same call, below the span that some headers name, if they name one."""
        if not headers:
            return self
        return self._replace(options={**self.options, "trace_headers": headers})


class Owner(Protocol):
    """The HTTP request that prompts belong to: it decides how each of them is run."""

    @property
    def model(self) -> str | None:
        """The name of the model that the client asked for."""
        ...

    @property
    def asked(self) -> bool:
        """Whether a prompt of the request has come to the engine."""
        ...

    def answer(self, call: EngineCall) -> AsyncIterator[Any]:
        """Return the engine's outputs of one of the request's prompts."""
        ...


OWNER: ContextVar[Owner | None] = ContextVar("tta_owner", default=None)
"""The HTTP request in whose context vLLM's serving layer calls the engine."""


class EngineClient:
    """A started asynchronous engine of vLLM, whose `generate` this client replaces by its own."""

    def __init__(self, llm: Any, max_probe_tokens: int) -> None:
        """Take the place of the engine's `generate`.

        Args:
            llm: vLLM's asynchronous engine.
            max_probe_tokens: The most tokens of a prompt that routing reads.
        """
        self._llm = llm
        self._generate = self._llm.generate
        self._llm.generate = self._generate_for_owner
        self.workers = Workers(self._llm.collective_rpc)
        self.vocabulary = int(self._llm.model_config.get_vocab_size())
        self._max_probe_tokens = min(max_probe_tokens, self._llm.model_config.max_model_len - 1)
        self.placer = PromptPlacer(self._llm.get_tokenizer(), self._max_probe_tokens)
        self._kinds: list[wire.ProbeKind] | None = None
        _drop_lora_gauge(self._llm)

    @property
    def dead(self) -> bool:
        """Whether the engine has ended."""
        return bool(self._llm.errored)

    def _generate_for_owner(
        self, prompt: Any, params: SamplingParams, name: str, **options: Any
    ) -> AsyncIterator[Any]:
        """Stand in for vLLM's `generate`: run a prompt as the HTTP request that owns it decides."""
        options.pop("lora_request", None)
        call = EngineCall(prompt, params, name, options)
        owner = OWNER.get()
        self._check_tokens(call.tokens)
        return self.run(call) if owner is None else owner.answer(call)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse a token that the base's embedding has no row for; vLLM lets the first one pass.

        Raises:
            VLLMValidationError: There is one.
        """
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.vocabulary):
            wrong = next(token for token in tokens if not 0 <= token < self.vocabulary)
            raise VLLMValidationError(
                f"token id {wrong} is out of the vocabulary, whose ids are 0 to"
                f" {self.vocabulary - 1}",
                parameter="prompt",
            )

    def run(
        self, call: EngineCall, adapter: LoRARequest | UndecidedRequest | None = None
    ) -> AsyncIterator[Any]:
        """Return the outputs of a prompt that runs with a mix, decided or not.

        Args:
            call: The prompt, as vLLM's serving layer handed it over.
            adapter: How it runs, None for the base.
        """
        if isinstance(adapter, UndecidedRequest):
            return self._run_undecided(call, adapter)
        outputs: AsyncIterator[Any] = self._generate(
            call.prompt, call.params, call.name, lora_request=adapter, **call.options
        )
        return outputs

    async def _run_undecided(
        self, call: EngineCall, undecided: UndecidedRequest
    ) -> AsyncIterator[Any]:
        """Run a prompt whose mix its own pass decides.

        The first output carries the decision, which is settled as soon as it comes.
        """
        outputs: Any = self.run(call, undecided.adapter)
        async with aclosing(outputs):
            async for output in outputs:
                undecided.settle(wire.take_decision(output))
                yield output

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        """Run a text through the base and return the mean input of the tapped layer, [hidden].

        Args:
            text: The text, whose last tokens are averaged.
            chat: Whether to put the text into the base's chat template as a user's turn, and to
                average over the first tokens of the turn.

        Raises:
            ProbeError: The engine reads no features, or the worker did not see the tokens as they
                were sent (a preempted probe).
        """
        if chat:
            tokens = self._apply_template(text)
            turn_text = text
        else:
            tokens = self._encode(text)
            turn_text = None
        await self._check_observes("features")
        start, end = self.placer.find_turn(tokens, turn_text)
        probe = wire.with_turn(wire.make_probe_request("features"), (start, end))
        output = await self._run_greedily(tokens[:end], 1, probe)
        seen = wire.take_features(output)
        if seen is None:
            raise _unobserved("features", tokens)
        return torch.tensor(seen.features)

    async def compare(
        self,
        prompt: Prompt,
        candidates: Sequence[Mix],
        window: Window,
        digests: Mapping[str, str],
        dense: Collection[str] = (),
    ) -> Outputs:
        """Run the prompt's last tokens through the base and each candidate, side by side.

        All run in one batch if there are slots for all. A draft has fewer tokens than
        `window.draft` if the base ends its answer. `nll` is NaN where the window is one token.

        Args:
            prompt: The prompt.
            candidates: The mixes that are compared with the base.
            window: Which tokens are compared.
            digests: The digests of the experts that candidates name.
            dense: The digests of those that are merged into the weights: each mix of them takes a
                step, and a switch, of its own.

        Raises:
            ProbeError: As `features` does, and if a prompt of one token leaves nothing to compare.
        """
        assert candidates, "nothing to compare with the base"
        if window.draft >= self._max_probe_tokens:
            raise ProbeError(
                f"a draft of {window.draft} tokens leaves no room; server.max_probe_tokens must be"
                " higher"
            )

        # The tokens: the end of the prompt, and what the base adds to it.
        tokens = self.prompt_tokens(prompt)[-(self._max_probe_tokens - window.draft) :]
        skip = max(0, len(tokens) - window.last)
        if window.draft:
            tokens += (await self._run_greedily(tokens, window.draft)).outputs[0].token_ids
        if len(tokens) < 2:
            raise ProbeError("a comparison needs a prompt of two tokens, or a draft")

        # The rows: the base, then each candidate.
        rows = [
            wire.make_probe_request("compare", wire.write_mix(mix, digests), skip, dense)
            for mix in (Mix(), *candidates)
        ]
        seen = await self._probe("compare", tokens, rows)
        assert isinstance(seen, wire.ProbeComparison)
        return Outputs(
            js=torch.tensor(seen.js),
            entropy=torch.tensor(seen.entropy),
            nll=torch.tensor(seen.nll),
            positions=seen.positions,
        )

    async def activations(self, text: str) -> Activations:
        """Run a text through the base and project its states on what each expert reads.

        Experts are named by their digests.

        Raises:
            ProbeError: As `features` does, and if there is no expert.
        """
        rows = [wire.make_probe_request("activations")]
        seen = await self._probe("activations", self._encode(text), rows)
        assert isinstance(seen, wire.ProbeActivations)
        return Activations(
            experts=tuple(seen.experts),
            sites=tuple(seen.sites),
            arrow=torch.tensor(seen.arrow),
            spectr=torch.tensor(seen.spectr),
            norm=torch.tensor(seen.norm),
            residual=torch.tensor(seen.residual),
            inputs=torch.tensor(seen.inputs),
        )

    async def install(
        self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules
    ) -> str:
        """Let requests be decided by these heads inside the pass, as `Workers.install`."""
        return await self.workers.install(heads, digests, rules)

    async def step(self) -> None:
        """Run a token of the base.

        Workers hear of a request's end with the next step, which an idle engine does not make.
        """
        await self._run_greedily([0], 1)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Return the last tokens of what the base would be asked.

        A user's turn is in the base's chat template, if it has one.
        """
        turn = prompt.user_turn
        tokens = self._apply_template(turn) if prompt.chat else self._encode(turn)
        return tokens[-self._max_probe_tokens :]

    def _apply_template(self, text: str) -> list[int]:
        """Return a text as a user's turn in the base's chat template, if the base has one.

        The tokens are cut where the engine takes no more.
        """
        tokenizer = self._llm.get_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            return self._encode(text)
        return chat_turns.encode_turn(tokenizer, text)[: self._llm.model_config.max_model_len - 1]

    def _encode(self, text: str) -> list[int]:
        """Return the last tokens of a text."""
        tokens = self._llm.get_tokenizer().encode(text, add_special_tokens=False)
        return list(tokens[-self._max_probe_tokens :])

    def text(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._llm.get_tokenizer().decode(tokens))

    async def _probe(
        self, kind: wire.ProbeKind, tokens: list[int], rows: Sequence[LoRARequest]
    ) -> wire.ProbeResult:
        """Run the same tokens as each of the rows, and return what workers observed."""
        await self._check_observes(kind)
        await asyncio.gather(*(self._run_greedily(tokens, 1, row) for row in rows))
        seen = await self.workers.take_probes(kind, [row.lora_int_id for row in rows], tokens)
        if seen is None:
            raise _unobserved(kind, tokens)
        return seen

    async def _check_observes(self, kind: wire.ProbeKind) -> None:
        """Raise ProbeError if the engine does not observe this kind of probe."""
        if self._kinds is None:
            self._kinds = await self.workers.probe_kinds()
        if kind not in self._kinds:
            raise ProbeError(
                f"this engine observes no {kind}; start it with enforce_eager, and for features"
                " with a tap layer"
            )

    async def _run_greedily(
        self, tokens: list[int], most: int, adapter: LoRARequest | None = None
    ) -> Any:
        """Return the output with at most `most` tokens of a greedy answer."""
        params = SamplingParams(
            max_tokens=most,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"tta-{secrets.token_hex(8)}"
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        call = EngineCall({"prompt_token_ids": tokens}, params, name).traced_by(headers)
        outputs = self.run(call, adapter)
        return [output async for output in outputs][-1]


def _unobserved(kind: wire.ProbeKind, tokens: Sequence[int]) -> ProbeError:
    return ProbeError(
        f"a probe ({kind}) of {len(tokens)} tokens was not observed as it was sent; was it"
        " preempted?"
    )


def _drop_lora_gauge(llm: Any) -> None:
    """Switch off vLLM's gauge `lora_requests_info`.

    It makes a new time series for every combination of mixes that ever ran together.
    """
    if llm.logger_manager is not None:
        for logger in llm.logger_manager.stat_loggers:
            if getattr(logger, "gauge_lora_info", None) is not None:
                logger.gauge_lora_info = None
