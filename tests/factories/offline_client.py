"""The server's client over an offline engine, and the slow maths of what it asks."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams

from adapters.deltas import Deltas
from adapters.expert import Expert
from adapters.mix import Mix
from router.probing import Activations, Outputs
from tests.reference import Reference
from tta_serve.engine.client.engine_client import EngineClient
from tta_serve.engine.wire import make_mix_request

_WEIGHTS = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}


class Numbers:
    """A tokenizer whose tokens are written as their ids, for bases without one."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [int(word) for word in text.split()]


class Front:
    """An offline engine as the client sees an asynchronous one; whoever waits steps it."""

    logger_manager = None

    def __init__(self, llm: Any, tokenizer: Any = None) -> None:
        self.llm = llm
        self.model_config = llm.model_config
        self._tokenizer = tokenizer
        self._outputs: dict[str, list[Any]] = {}
        self._numbers = count()

    def get_tokenizer(self) -> Any:
        return self._tokenizer or self.llm.get_tokenizer()

    async def collective_rpc(self, method: str, timeout: float, args: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.llm.collective_rpc(method, timeout, tuple(args))
        return found

    async def generate(
        self, prompt: Any, params: Any, name: str, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        engine = self.llm.llm_engine
        engine.add_request(name, prompt, params, lora_request=lora_request)
        self._outputs[name] = []
        await asyncio.sleep(0)  # so that all who ask at once have asked before the first step
        try:
            while True:
                while not self._outputs[name]:
                    for output in engine.step():
                        self._outputs.get(output.request_id, []).append(output)
                    await asyncio.sleep(0)
                output = self._outputs[name].pop(0)
                yield output
                if output.finished:
                    return
        finally:
            del self._outputs[name]
            engine.abort_request([name])

    async def ask(
        self, tokens: list[int], mix: Mix, digests: Mapping[str, str], most: int = 12
    ) -> tuple[list[int], float]:
        """Return the greedy answer to an ordinary request, and its log-probability."""
        params = SamplingParams(
            temperature=0, max_tokens=most, ignore_eos=True, logprobs=0, detokenize=False
        )
        name = f"request-{next(self._numbers)}"
        outputs = self.generate(
            {"prompt_token_ids": tokens}, params, name, lora_request=make_mix_request(mix, digests)
        )
        *_, output = [output async for output in outputs]
        return list(output.outputs[0].token_ids), output.outputs[0].cumulative_logprob

    def client(self, most: int = 512) -> EngineClient:
        return EngineClient(self, most)


def assert_compared(  # noqa: PLR0913 - one thing each
    got: Outputs,
    reference: Reference,
    experts: Mapping[str, Expert] | Mapping[str, Deltas],
    tokens: list[int],
    mixes: Sequence[Mix],
    skip: int,
) -> None:
    """A comparison is that of dense merges, in float64 and by the definitions.

    Args:
        got: The engine's comparison.
        reference: Plain transformers.
        experts: The experts, by name.
        tokens: What was compared.
        mixes: The candidates.
        skip: How many positions there are before the window.
    """
    logs = torch.stack([_logs(reference, experts, tokens, mix)[skip:] for mix in (Mix(), *mixes)])
    base, others = logs[:1].exp(), logs[1:].exp()
    js = _entropy((base + others) / 2) - (_entropy(base) + _entropy(others)) / 2
    following = torch.tensor(tokens[skip + 1 :])
    nll = -torch.stack([row[torch.arange(len(following)), following] for row in logs])
    assert got.positions == len(tokens) - skip
    for found, wanted in ((got.js, js), (got.entropy, _entropy(logs.exp())), (got.nll, nll)):
        torch.testing.assert_close(found.double(), wanted.mean(1), rtol=1e-4, atol=1e-4)
    assert all(0 <= value <= math.log(2) for value in got.js.tolist())


@torch.no_grad()
def _logs(
    reference: Reference,
    experts: Mapping[str, Expert] | Mapping[str, Deltas],
    tokens: list[int],
    mix: Mix,
) -> Tensor:
    with _merge(reference, experts, mix):
        logits: Tensor = reference.model(torch.tensor([tokens])).logits[0]
    return logits.double().log_softmax(-1)


def _merge(
    reference: Reference, experts: Mapping[str, Expert] | Mapping[str, Deltas], mix: Mix
) -> AbstractContextManager[None]:
    low_rank = {name: e for name, e in experts.items() if isinstance(e, Expert)}
    if len(low_rank) == len(experts):
        return reference.merged(low_rank, mix.as_dict())
    others = {name: e for name, e in experts.items() if not isinstance(e, Expert)}
    return reference.changed(others, mix.as_dict())


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy


def assert_watched(
    got: Activations,
    reference: Reference,
    experts: Mapping[str, Expert],
    tokens: list[int],
    step: int = 1,
) -> None:
    """The scores are those of dense deltas' SVDs, NaN where an expert leaves a site alone.

    Args:
        got: The engine's activations.
        reference: Plain transformers.
        experts: The experts, by digest.
        tokens: The text.
        step: Look at one site in so many.
    """
    assert sorted(got.experts) == sorted(experts)
    inputs = _inputs(reference, tokens)
    touched = {
        site
        for expert in experts.values()
        for site in inputs
        if _first_delta(expert, site) is not None
    }
    assert [_half(site) for site in got.sites] == [site for site in inputs if site in touched]
    for column, site in [*enumerate(map(_half, got.sites))][::step]:
        x = inputs[site]
        torch.testing.assert_close(
            got.inputs[column].double(), x.norm(dim=1).mean(), rtol=1e-4, atol=1e-4
        )
        for row, name in enumerate(got.experts):
            found = torch.stack(
                [table[row, column] for table in (got.arrow, got.spectr, got.norm, got.residual)]
            )
            torch.testing.assert_close(
                found,
                _scores(x, _first_delta(experts[name], site)),
                rtol=1e-3,
                atol=1e-4,
                equal_nan=True,
            )


def _half(site: str) -> str:
    """Return the attention or MLP that a linear layer is in, by name."""
    return site.rpartition(".")[0]


def _scores(x: Tensor, delta: Tensor | None) -> Tensor:
    """Return arrow, spectr, norm and residual of one expert at one site."""
    if delta is None:
        return torch.full((4,), torch.nan)
    _, s, vt = torch.linalg.svd(delta, full_matrices=False)
    vt = vt[s > 1e-6 * s[0]]
    along = x @ vt.t()
    away = (x - along @ vt).norm(dim=1)
    scores = along[:, 0].abs().mean(), along.norm(dim=1).mean(), (delta @ x[-1]).norm(), away.mean()
    return torch.stack(scores).float()


def _first_delta(expert: Expert, half: str) -> Tensor | None:
    weights = (f"{half}.{leaf}" for leaf in _WEIGHTS[half.rpartition(".")[2]])
    return next(
        (expert.factors[weight].dense().double() for weight in weights if weight in expert.factors),
        None,
    )


@torch.no_grad()
def _inputs(reference: Reference, tokens: list[int]) -> dict[str, Tensor]:
    """Return the input of every attention and MLP of the base, by name in the model's order.

    Each is [tokens, hidden], float64.
    """
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in reference.model.named_modules():
        half, _, leaf = name.rpartition(".")
        if leaf in ("q_proj", "gate_proj"):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, half=half: seen.update({half: args[0][0].double()})
                )
            )
    reference.model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return seen
