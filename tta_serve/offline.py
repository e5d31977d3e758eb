"""The base in plain transformers, changed by experts, over example prompts: what a form loses, and what some merges need."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint import Checkpoint
from adapters.deltas import Deltas
from adapters.errors import ExpertError

MAX_PROMPTS = 256
MAX_TOKENS = 512
_MOST_LOGPROBS = 1 << 27  # held at once: 512 MiB


@dataclass(frozen=True)
class Offline:
    """The base's model, float32, and its tokenizer. Raises ExpertError where transformers cannot load them."""

    base: Checkpoint
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, base: Checkpoint) -> Offline:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = str(base.folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ExpertError(f"{folder} has weights, but transformers cannot load model and tokenizer: {error}") from None
        return cls(base, model, tokenizer)

    def tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        """At most 256 prompts of two tokens and more, each cut to 512 tokens, as [1, tokens]."""
        found = [self.tokenizer(prompt, return_tensors="pt").input_ids[:, :MAX_TOKENS] for prompt in prompts[:MAX_PROMPTS]]
        return [ids for ids in found if ids.shape[1] > 1]

    @contextmanager
    def changed(self, deltas: Deltas | None) -> Iterator[None]:
        """The model is base + deltas meanwhile; then its weights are the base's again, by copy."""
        weights = dict(deltas.shapes) if deltas else {}
        try:
            for weight in weights:
                assert deltas is not None
                self.parameter(weight).data.add_(deltas.delta(weight))
            yield
        finally:
            for weight in weights:
                self.parameter(weight).data.copy_(self.base.read(weight))

    def parameter(self, weight: str) -> torch.nn.Parameter:
        """A weight of the model. Raises ExpertError if it is not called so there."""
        try:
            found: torch.nn.Parameter = self.model.get_parameter(weight)
        except AttributeError:
            raise ExpertError(f"{weight} of {self.base.folder} has another name in transformers' model") from None
        return found

    @torch.no_grad()
    def logprobs(self, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """log p(. | x_<t) at every position of each prompt but the last. [tokens - 1, vocabulary] each"""
        for ids in tokens:
            yield self.model(ids).logits[0, :-1].log_softmax(-1)


def change(offline: Offline, before: Deltas, after: Deltas, prompts: Sequence[str]) -> dict[str, float]:
    """How far base + after is from base + before in its next-token log-probabilities, over the tokens of prompts.

    logprob_change_mean, logprob_change_max: |log p_after(x_t | x_<t) - log p_before(x_t | x_<t)|, nats
    kl_mean: KL(p_before || p_after), nats, mean over positions   tokens: positions

    Empty where no prompt has two tokens.
    """
    tokens = offline.tokens(prompts)
    if not tokens:
        return {}
    shift, kl = [], []
    for group in _groups(tokens, _MOST_LOGPROBS // offline.model.config.get_text_config().vocab_size):
        with offline.changed(before):
            wanted = list(offline.logprobs(group))
        with offline.changed(after):
            for ids, p, q in zip(group, wanted, offline.logprobs(group), strict=True):
                following = ids[0, 1:, None]
                shift.append((q.gather(1, following) - p.gather(1, following)).abs().flatten())
                kl.append((p.double().exp() * (p.double() - q)).sum(1))
    shifts, divergence = torch.cat(shift), torch.cat(kl)
    found = {"logprob_change_mean": shifts.mean(), "logprob_change_max": shifts.max(), "kl_mean": divergence.mean()}
    return {**{name: float(value) for name, value in found.items()}, "tokens": float(len(shifts))}


def _groups(tokens: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Prompts in order, at most so many tokens together unless one alone has more."""
    group: list[Tensor] = []
    for ids in tokens:
        if group and sum(other.shape[1] for other in group) + ids.shape[1] > most:
            yield group
            group = []
        group.append(ids)
    yield group


def grams(offline: Offline, experts: Sequence[Deltas], prompts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """sum x x^T of each linear layer's inputs, of each expert over its own prompts. By weight, [experts, in, in], float32.

    Layers that read the same tensor (q, k and v; gate and up) share one. Summed in float64.
    """
    weights = {w for deltas in experts for w, shape in deltas.shapes.items() if len(shape) == 2}
    linear = {name: m for name, m in offline.model.named_modules() if isinstance(m, torch.nn.Linear)}
    watched = {name: m for name, m in linear.items() if f"{name}.weight" in weights}
    per_expert = []
    for deltas, own in zip(experts, prompts, strict=True):
        with offline.changed(deltas), _grams_of(watched) as found:
            deque(offline.logprobs(offline.tokens(own)), maxlen=0)
        per_expert.append(found)
    together: dict[tuple[int, ...], Tensor] = {}
    result = {}
    for name in watched:
        parts = [found[name] for found in per_expert if name in found]
        if len(parts) == len(experts):
            key = tuple(map(id, parts))
            if key not in together:
                together[key] = torch.stack([part.float() for part in parts])
            result[f"{name}.weight"] = together[key]
    return result


@contextmanager
def _grams_of(layers: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    last: dict[str, Any] = {"input": None, "name": None}

    def watch(name: str) -> Callable[..., None]:
        def seen(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0] is last["input"]:
                found[name] = found[last["name"]]
                return
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found.setdefault(name, x.new_zeros(x.shape[1], x.shape[1])).addmm_(x.t(), x)
            last.update(input=inputs[0], name=name)

        return seen

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def fishers(offline: Offline, experts: Sequence[Deltas], prompts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """The diagonal of each expert's empirical Fisher information, over its own prompts. By weight, [experts, *shape].

    F = mean over prompts of (d/dW sum_t log p(x_t | x_<t))^2. Memory: the weights that are touched, once for each expert.
    """
    shapes = {weight: shape for deltas in experts for weight, shape in deltas.shapes.items()}
    result = {weight: torch.zeros(len(experts), *shape) for weight, shape in shapes.items()}
    for k, (deltas, own) in enumerate(zip(experts, prompts, strict=True)):
        tokens = offline.tokens(own)
        with offline.changed(deltas), _gradients(offline, shapes):
            for ids in tokens:
                offline.model.zero_grad()
                logits = offline.model(ids).logits[0, :-1]
                logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().backward()
                for weight in shapes:
                    gradient = offline.parameter(weight).grad
                    assert gradient is not None
                    result[weight][k].addcmul_(gradient, gradient, value=1 / len(tokens))
        offline.model.zero_grad()
    return result


@contextmanager
def _gradients(offline: Offline, weights: Mapping[str, Any]) -> Iterator[None]:
    """Only these weights have gradients meanwhile."""
    offline.model.requires_grad_(False)
    for weight in weights:
        offline.parameter(weight).requires_grad_(True)
    try:
        yield
    finally:
        offline.model.requires_grad_(True)


def calibration(
    base: Checkpoint, needs: frozenset[str], experts: Mapping[str, Deltas], prompts: Mapping[str, Sequence[str]]
) -> dict[str, Mapping[str, Tensor]]:
    """What a merge needs of `grams` and `fishers`, one of them or both, measured on each expert's own example prompts.

    Raises ExpertError for an expert without prompts, or where this would take more than half of the machine's free memory.
    """
    wanted = needs & {"grams", "fishers"}
    for name in experts:
        if not prompts[name]:
            raise ExpertError(f"expert {name!r} has no example prompts to calibrate on; add it again with --examples")
    _check_memory(wanted, experts)
    offline = Offline.load(base)
    given = list(experts.values()), [prompts[name] for name in experts]
    makers = {"grams": grams, "fishers": fishers}
    return {name: makers[name](offline, *given) for name in sorted(wanted)}


def _check_memory(wanted: frozenset[str], experts: Mapping[str, Deltas]) -> None:
    shapes = {weight: shape for deltas in experts.values() for weight, shape in deltas.shapes.items()}
    of_one = {
        "grams": sum(8 * shape[1] ** 2 for shape in shapes.values() if len(shape) == 2),
        "fishers": sum(4 * math.prod(shape) for shape in shapes.values()),
    }
    need, free = len(experts) * sum(of_one[name] for name in wanted), _free_bytes()
    if need > free / 2:
        raise ExpertError(
            f"to calibrate {len(experts)} experts takes up to {need / 1e9:.1f} GB, half of what is free is {free / 2e9:.1f}; "
            "merge fewer at a time, or by a method that needs no prompts"
        )


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says how much memory is available")
