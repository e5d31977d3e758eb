"""What some merges must know of experts, measured on the experts' own answers to their prompts.

A server reads a prompt in the chat template and goes on with an answer, so that is what experts are
run over here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from tta_serve.offline.answered_prompts import AnsweredPrompt, answer_greedily
from tta_serve.offline.base_model import MAX_PROMPTS, PlainModel

MEASURED = frozenset({"grams", "fishers"})
"""What is measured here, of all that a method may need."""
ANSWER_TOKENS = 40
"""So many tokens has an expert's own answer at most."""

Answers = Sequence[Sequence[AnsweredPrompt]]
"""By expert, its prompts with its own answers."""


class MergeCalibration:
    """Measures what merges need of some experts, who answer their prompts but once for that.

    Args:
        base: The experts' base.
        experts: By name, in the order of what is measured.
        prompts: Each expert's own example prompts, by name.

    Raises:
        ExpertError: An expert has no prompts.
    """

    def __init__(
        self,
        base: Checkpoint,
        experts: Mapping[str, Deltas],
        prompts: Mapping[str, Sequence[str]],
    ) -> None:
        for name in experts:
            if not prompts[name]:
                raise ExpertError(
                    f"expert {name!r} has no example prompts to calibrate on; add it again with"
                    " --examples"
                )
        self._base = base
        self._experts = list(experts.values())
        self._prompts = [prompts[name] for name in experts]

    def measure(self, needs: frozenset[str]) -> dict[str, Mapping[str, Tensor]]:
        """Return what a merge needs of `measure_grams` and `measure_fishers`.

        Args:
            needs: "grams", "fishers" or both; other words are not meant for this function.

        Raises:
            ExpertError: This would take more than half of the machine's free memory, or
                transformers cannot load the base.
        """
        wanted = needs & MEASURED
        _check_memory(wanted, self._experts)
        makers = {"grams": measure_grams, "fishers": measure_fishers}
        return {
            name: makers[name](self._plain, self._experts, self._answers) for name in sorted(wanted)
        }

    @cached_property
    def _plain(self) -> PlainModel:
        return PlainModel.load(self._base)

    @cached_property
    def _answers(self) -> Answers:
        return let_answer(self._plain, self._experts, self._prompts)


def let_answer(
    plain: PlainModel, experts: Sequence[Deltas], prompts: Sequence[Sequence[str]]
) -> Answers:
    """Let each expert answer its own prompts, greedily.

    At most 256 prompts are taken, and 40 tokens of an answer.
    """
    found = []
    for deltas, own in zip(experts, prompts, strict=True):
        with plain.apply(deltas):
            found.append([answer_greedily(plain, p, ANSWER_TOKENS) for p in own[:MAX_PROMPTS]])
    return found


def measure_grams(
    plain: PlainModel, experts: Sequence[Deltas], answers: Answers
) -> dict[str, Tensor]:
    """Return sum x x^T of each linear layer's inputs, of each expert over its own answers.

    They are those of all tokens that an expert reads, of the prompt too. Layers that read the same
    tensor (q, k and v; gate and up) share one. Sums are in float64.

    Returns:
        By weight, [experts, in, in], float32.
    """
    weights = {w for deltas in experts for w, shape in deltas.shapes.items() if len(shape) == 2}
    linear = {name: m for name, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear)}
    watched = {name: m for name, m in linear.items() if f"{name}.weight" in weights}
    per_expert = []
    for deltas, own in zip(experts, answers, strict=True):
        with plain.apply(deltas), _grams_of(watched) as found, torch.no_grad():
            for answered in own:
                plain.model(answered.ids, use_cache=False, logits_to_keep=1)
        per_expert.append(found)

    # Stack the experts' sums, once for all layers that share them.
    together: dict[tuple[int, ...], Tensor] = {}
    result: dict[str, Tensor] = {}
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
    """Sum x x^T of the inputs of some layers meanwhile, by name."""
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


def measure_fishers(
    plain: PlainModel, experts: Sequence[Deltas], answers: Answers
) -> dict[str, Tensor]:
    """Return the diagonal of each expert's empirical Fisher information, over its own answers.

    F = mean over prompts of (d/dW sum_t log p(y_t | x, y_<t))^2, with prompt x and answer y.
    Memory: the weights that are touched, once for each expert.

    Returns:
        By weight, [experts, *shape].
    """
    shapes = {weight: shape for deltas in experts for weight, shape in deltas.shapes.items()}
    result = {weight: torch.zeros(len(experts), *shape) for weight, shape in shapes.items()}
    for k, (deltas, own) in enumerate(zip(experts, answers, strict=True)):
        with plain.apply(deltas), _gradients(plain, shapes):
            for answered in own:
                plain.model.zero_grad()
                count = len(answered.wanted)
                logits = plain.model(answered.ids, use_cache=False, logits_to_keep=count).logits[0]
                cross_entropy(logits, answered.wanted, reduction="sum").backward()
                for weight in shapes:
                    gradient = plain.find_parameter(weight).grad
                    assert gradient is not None
                    result[weight][k].addcmul_(gradient, gradient, value=1 / len(own))
        plain.model.zero_grad()
    return result


@contextmanager
def _gradients(plain: PlainModel, weights: Mapping[str, Any]) -> Iterator[None]:
    """Let only these weights have gradients meanwhile."""
    plain.model.requires_grad_(False)
    for weight in weights:
        plain.find_parameter(weight).requires_grad_(True)
    try:
        yield
    finally:
        plain.model.requires_grad_(True)


def _check_memory(wanted: frozenset[str], experts: Sequence[Deltas]) -> None:
    shapes = {weight: shape for deltas in experts for weight, shape in deltas.shapes.items()}
    bytes_of_one = {
        "grams": sum(8 * shape[1] ** 2 for shape in shapes.values() if len(shape) == 2),
        "fishers": sum(4 * math.prod(shape) for shape in shapes.values()),
    }
    need = len(experts) * sum(bytes_of_one[name] for name in wanted)
    free = _free_bytes()
    if need > free / 2:
        raise ExpertError(
            f"to calibrate {len(experts)} experts takes up to {need / 1e9:.1f} GB, half of what is"
            f" free is {free / 2e9:.1f}; merge fewer at a time, or by a method that needs no"
            " prompts"
        )


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says how much memory is available")
