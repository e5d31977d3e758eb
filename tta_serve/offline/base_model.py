"""The base in plain transformers, changed by experts, over example prompts.

It measures what a form of an expert loses, and the statistics that some merges need.
"""

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

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint

MAX_PROMPTS = 256
"""So many prompts are used at most."""
MAX_TOKENS = 512
"""So many tokens of a prompt are used at most."""
_MOST_LOGPROBS = 1 << 27  # so many are held at once: 512 MiB


@dataclass(frozen=True)
class PlainModel:
    """The base's model, float32, and its tokenizer."""

    base: Checkpoint
    """The folder that both come from."""
    model: Any
    """A causal language model of transformers."""
    tokenizer: Any
    """A tokenizer of transformers."""

    @classmethod
    def load(cls, base: Checkpoint) -> PlainModel:
        """Load model and tokenizer of a base.

        Raises:
            ExpertError: transformers cannot load them.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = str(base.folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            ).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ExpertError(
                f"{folder} has weights, but transformers cannot load model and tokenizer: {error}"
            ) from None
        return cls(base, model, tokenizer)

    def tokenize(self, prompts: Sequence[str]) -> list[Tensor]:
        """Return the tokens of some prompts, each [1, tokens].

        At most 256 prompts are taken, each cut to 512 tokens; those of fewer than two tokens are
        left out.
        """
        found = [
            self.tokenizer(prompt, return_tensors="pt").input_ids[:, :MAX_TOKENS]
            for prompt in prompts[:MAX_PROMPTS]
        ]
        return [ids for ids in found if ids.shape[1] > 1]

    @contextmanager
    def apply(self, deltas: Deltas | None) -> Iterator[None]:
        """Make the model base + deltas meanwhile.

        Afterwards its weights are the base's again, by copy.
        """
        weights = dict(deltas.shapes) if deltas else {}
        try:
            for weight in weights:
                assert deltas is not None
                self.find_parameter(weight).data.add_(deltas.delta(weight))
            yield
        finally:
            for weight in weights:
                self.find_parameter(weight).data.copy_(self.base.read(weight))

    def find_parameter(self, weight: str) -> torch.nn.Parameter:
        """Return a weight of the model.

        Raises:
            ExpertError: It is not called so there.
        """
        try:
            found: torch.nn.Parameter = self.model.get_parameter(weight)
        except AttributeError:
            raise ExpertError(
                f"{weight} of {self.base.folder} has another name in transformers' model"
            ) from None
        return found

    @torch.no_grad()
    def compute_logprobs(self, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield log p(. | x_<t) of each prompt, [tokens - 1, vocabulary].

        That is at every position but the last.
        """
        for ids in tokens:
            yield self.model(ids).logits[0, :-1].log_softmax(-1)


def measure_change(
    plain: PlainModel, before: Deltas, after: Deltas, prompts: Sequence[str]
) -> dict[str, float]:
    """Return how far base + after is from base + before, in next-token log-probabilities.

    logprob_change_mean and logprob_change_max are of |log p_after(x_t | x_<t) - log p_before(x_t |
    x_<t)|, nats; kl_mean is KL(p_before || p_after), nats, the mean over positions; tokens is the
    number of positions. Empty where no prompt has two tokens.

    Args:
        plain: The base.
        before: What is added to it to compare with.
        after: What is added to it instead.
        prompts: Over whose tokens to measure.
    """
    tokens = plain.tokenize(prompts)
    if not tokens:
        return {}

    shift: list[Tensor] = []
    kl: list[Tensor] = []
    for group in _groups(tokens, _MOST_LOGPROBS // plain.model.config.get_text_config().vocab_size):
        with plain.apply(before):
            wanted = list(plain.compute_logprobs(group))
        with plain.apply(after):
            for ids, p, q in zip(group, wanted, plain.compute_logprobs(group), strict=True):
                following = ids[0, 1:, None]
                shift.append((q.gather(1, following) - p.gather(1, following)).abs().flatten())
                kl.append((p.double().exp() * (p.double() - q)).sum(1))

    shifts = torch.cat(shift)
    return {
        "logprob_change_mean": float(shifts.mean()),
        "logprob_change_max": float(shifts.max()),
        "kl_mean": float(torch.cat(kl).mean()),
        "tokens": float(len(shifts)),
    }


def _groups(tokens: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Yield prompts in order, at most so many tokens together unless one alone has more."""
    group: list[Tensor] = []
    for ids in tokens:
        if group and sum(other.shape[1] for other in group) + ids.shape[1] > most:
            yield group
            group = []
        group.append(ids)
    yield group


def measure_grams(
    plain: PlainModel, experts: Sequence[Deltas], prompts: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """Return sum x x^T of each linear layer's inputs, of each expert over its own prompts.

    Layers that read the same tensor (q, k and v; gate and up) share one. Sums are in float64.

    Returns:
        By weight, [experts, in, in], float32.
    """
    weights = {w for deltas in experts for w, shape in deltas.shapes.items() if len(shape) == 2}
    linear = {name: m for name, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear)}
    watched = {name: m for name, m in linear.items() if f"{name}.weight" in weights}
    per_expert = []
    for deltas, own in zip(experts, prompts, strict=True):
        with plain.apply(deltas), _grams_of(watched) as found:
            deque(plain.compute_logprobs(plain.tokenize(own)), maxlen=0)
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
    plain: PlainModel, experts: Sequence[Deltas], prompts: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """Return the diagonal of each expert's empirical Fisher information, over its own prompts.

    F = mean over prompts of (d/dW sum_t log p(x_t | x_<t))^2. Memory: the weights that are touched,
    once for each expert.

    Returns:
        By weight, [experts, *shape].
    """
    shapes = {weight: shape for deltas in experts for weight, shape in deltas.shapes.items()}
    result = {weight: torch.zeros(len(experts), *shape) for weight, shape in shapes.items()}
    for k, (deltas, own) in enumerate(zip(experts, prompts, strict=True)):
        tokens = plain.tokenize(own)
        with plain.apply(deltas), _gradients(plain, shapes):
            for ids in tokens:
                plain.model.zero_grad()
                logits = plain.model(ids).logits[0, :-1]
                logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().backward()
                for weight in shapes:
                    gradient = plain.find_parameter(weight).grad
                    assert gradient is not None
                    result[weight][k].addcmul_(gradient, gradient, value=1 / len(tokens))
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


def measure_calibration(
    base: Checkpoint,
    needs: frozenset[str],
    experts: Mapping[str, Deltas],
    prompts: Mapping[str, Sequence[str]],
) -> dict[str, Mapping[str, Tensor]]:
    """Return what a merge needs of `measure_grams` and `measure_fishers`.

    Args:
        base: The experts' base.
        needs: "grams", "fishers" or both; other words are not meant for this function.
        experts: By name, in the order of the result's rows.
        prompts: Each expert's own example prompts, by name.

    Raises:
        ExpertError: An expert has no prompts, or this would take more than half of the machine's
            free memory.
    """
    wanted = needs & {"grams", "fishers"}
    for name in experts:
        if not prompts[name]:
            raise ExpertError(
                f"expert {name!r} has no example prompts to calibrate on; add it again with"
                " --examples"
            )
    _check_memory(wanted, experts)
    plain = PlainModel.load(base)
    given = list(experts.values()), [prompts[name] for name in experts]
    makers = {"grams": measure_grams, "fishers": measure_fishers}
    return {name: makers[name](plain, *given) for name in sorted(wanted)}


def _check_memory(wanted: frozenset[str], experts: Mapping[str, Deltas]) -> None:
    shapes = {
        weight: shape for deltas in experts.values() for weight, shape in deltas.shapes.items()
    }
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
