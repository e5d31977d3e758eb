"""The base and mixes of experts on the same tokens: how their next-token distributions differ."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.coefficient import Coefficient, Place
from router.scoring.divergence import entropy, js, nll
from tta_serve.engine import wire
from tta_serve.engine.worker.probes.observer import ProbeObserver, RunningProbe

_UNREAD_STATES = 1 << 15
_LOGITS_AT_ONCE = 1 << 22


class ComparedMix(NamedTuple):
    """What one row of a comparison runs as."""

    mix: Mapping[str, Coefficient]
    """In slots, by expert digest."""
    dense: wire.DenseKey = ()
    """In the weights."""


MakeLogits = Callable[[Tensor, Sequence[ComparedMix]], Tensor | None]
"""Makes [states, vocabulary] of [states, hidden], the first so many of which are of the first mix,
as many of the next one, and so on. It is None on tensor-parallel ranks that have no part in it, and
if an expert is gone."""


class FinalStates(NamedTuple):
    """The final states of the tokens of one probe that are compared."""

    seen: int
    """How many of the probe's tokens passed by."""
    kept: Tensor
    """[kept tokens, hidden], the model's final states."""
    mix: ComparedMix
    """What the probe runs as."""


class ComparisonObserver(ProbeObserver[FinalStates]):
    """Keeps the final states of a probe's last tokens, and makes logits of them when it is asked.

    Logits are what the model's head gives for them, in its dtype, and all that follows is float32.
    A model of 16 bits has a head of 32 if vLLM is told so: engine_args {hf_overrides: {head_dtype:
    float32}}.
    """

    capacity = _UNREAD_STATES

    def __init__(self, logits: MakeLogits, vocabulary: int) -> None:
        """Store how logits are computed.

        Args:
            logits: Makes logits of states.
            vocabulary: The size of the vocabulary.
        """
        super().__init__()
        self._logits = logits
        self._vocabulary = vocabulary

    def _add(
        self, before: FinalStates | None, x: Tensor, running: RunningProbe, place: Place | None
    ) -> FinalStates:
        seen = 0 if before is None else before.seen
        # A copy: a view would keep the skipped ones too.
        new = x[max(0, running.skip - seen) :].clone()
        kept = new if before is None else torch.cat([before.kept, new])
        return FinalStates(seen + len(x), kept, ComparedMix(running.mix, running.dense))

    def _size(self, one: FinalStates) -> int:
        return len(one.kept)

    @torch.inference_mode()
    def _read(
        self, kept: Sequence[FinalStates], tokens: Sequence[int]
    ) -> wire.ProbeComparison | None:
        """Compare the rows that were kept, of which the first is the base.

        It is None without logits. Logits are computed for a few positions at a time, so
        that memory holds about _LOGITS_AT_ONCE of them and some copies.
        """
        states = torch.stack([one.kept for one in kept])
        mixes = [one.mix for one in kept]
        rows, positions, _ = states.shape
        following = torch.tensor(tokens[len(tokens) - positions + 1 :], device=states.device)
        at_once = max(1, _LOGITS_AT_ONCE // (rows * self._vocabulary))
        blocks = []
        for some in (slice(start, start + at_once) for start in range(0, positions, at_once)):
            logits = self._logits(states[:, some].flatten(0, 1), mixes)
            if logits is not None:
                by_row = logits.float().view(rows, -1, logits.shape[-1])
                blocks.append(_compare(by_row, following[some]))
        if not blocks:
            return None

        js_mean, entropy_mean, nll_mean = (
            torch.cat(parts, 1).mean(1).tolist() for parts in zip(*blocks, strict=True)
        )
        return wire.ProbeComparison(js_mean, entropy_mean, nll_mean, positions)


def _compare(logits: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return divergences from the first row, entropies and losses.

    Their shapes are [rows - 1, positions], [rows, positions] and [rows, known].

    Args:
        logits: [rows, positions, vocabulary].
        following: [known], the tokens after the positions, as far as they are known.
    """
    divergences = torch.stack([js(logits[0], row) for row in logits[1:]])
    losses = nll(logits[:, : len(following)], following.expand(len(logits), -1))
    return divergences, entropy(logits), losses
