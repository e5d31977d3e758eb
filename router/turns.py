"""A user's turn in a prompt: as the base's chat template has it, and where its tokens are."""

from collections.abc import Sequence
from typing import Any

_MERGED = 4  # tokens at an end of a turn that may have become others, beside what the template puts there


def tokens(tokenizer: Any, text: str) -> list[int]:
    """A text as the one user turn of the tokenizer's chat template, up to where the answer starts."""
    turns = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(whole, add_special_tokens=False))


def span(prompt: Sequence[int], turn: Sequence[int]) -> tuple[int, int] | None:
    """The last [start, end) at which the prompt has the turn's tokens; None if it has not.

    A tokenizer may merge the ends of a turn with what stands beside it: if the turn is not there as it is, it is looked for
    without up to 4 tokens at either end, as few as possible and at most half of it; the span covers what was left out too.
    """
    cuts = [
        (left, right)
        for left in range(_MERGED + 1)
        for right in range(_MERGED + 1)
        if 2 * (left + right) <= len(turn) and turn
    ]
    whole, wanted = _backwards(prompt), _backwards(turn)
    for left, right in sorted(cuts, key=sum):
        after = whole.find(wanted[right : len(turn) - left])
        if after >= 0:
            end = len(prompt) - after + right
            return max(end - len(turn), 0), min(end, len(prompt))
    return None


def _backwards(tokens: Sequence[int]) -> str:
    """A character for each token, the last first: `str.find` takes linear time whatever the text, `str.rfind` does not."""
    return "".join(map(chr, reversed(tokens)))
