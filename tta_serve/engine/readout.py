"""The base and mixes of experts on the same tokens: how their next-token distributions differ."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.coefficient import Place
from router.divergence import entropy, js, nll
from tta_serve.engine.observer import Observer, Running

_UNREAD_STATES = 1 << 15
_LOGITS_AT_ONCE = 1 << 22


class States(NamedTuple):
    """kept: [kept tokens, hidden], the model's final states"""

    seen: int
    kept: Tensor


class Readout(Observer[States]):
    """Comparisons: keeps the final hidden states of a probe's last tokens, and makes logits of them when it is asked.

    Logits are what the model's head gives for them, in its dtype, and all that follows is float32. A model of 16 bits has a
    head of 32 if vLLM is told so: engine_args {hf_overrides: {head_dtype: float32}}.
    """

    capacity = _UNREAD_STATES

    def __init__(self, logits: Callable[[Tensor], Tensor | None], vocabulary: int) -> None:
        """logits: [states, hidden] -> [states, vocabulary], None on tensor-parallel ranks that have no part in it"""
        super().__init__()
        self._logits = logits
        self._vocabulary = vocabulary

    def _add(self, before: States | None, x: Tensor, running: Running, place: Place | None) -> States:
        seen = 0 if before is None else before.seen
        new = x[max(0, running.skip - seen) :].clone()  # not a view, which would keep the skipped ones
        return States(seen + len(x), new if before is None else torch.cat([before.kept, new]))

    def _size(self, one: States) -> int:
        return len(one.kept)

    @torch.inference_mode()
    def _read(self, kept: Sequence[States], tokens: Sequence[int]) -> dict[str, Any] | None:
        """The fields of router.policy.Outputs of the rows kept, the base first; None on ranks without logits.

        Computed for a few positions at a time, so that memory holds about _LOGITS_AT_ONCE logits and some copies of them.
        """
        states = torch.stack([one.kept for one in kept])
        rows, positions, _ = states.shape
        following = torch.tensor(tokens[len(tokens) - positions + 1 :], device=states.device)
        at_once = max(1, _LOGITS_AT_ONCE // (rows * self._vocabulary))
        blocks = []
        for some in (slice(start, start + at_once) for start in range(0, positions, at_once)):
            logits = self._logits(states[:, some].flatten(0, 1))
            if logits is not None:
                blocks.append(_compared(logits.float().view(rows, -1, logits.shape[-1]), following[some]))
        if not blocks:
            return None
        means = [torch.cat(parts, 1).mean(1).tolist() for parts in zip(*blocks, strict=True)]
        return {**dict(zip(("js", "entropy", "nll"), means, strict=True)), "positions": positions}


def _compared(logits: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divergences from the first row, entropies and losses: [rows - 1, positions], [rows, positions], [rows, known].

    logits: [rows, positions, vocabulary]   following: [known], the tokens after the positions, as far as they are known
    """
    divergences = torch.stack([js(logits[0], row) for row in logits[1:]])
    return divergences, entropy(logits), nll(logits[:, : len(following)], following.expand(len(logits), -1))
