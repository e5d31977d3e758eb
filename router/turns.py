"""Where the tokens of a user's turn are among those of a prompt."""

from collections.abc import Sequence

_MERGED = 4  # tokens at an end of a turn that may have become others, beside what the template puts there


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
    for left, right in sorted(cuts, key=sum):
        start = _last(prompt, turn[left : len(turn) - right])
        if start is not None:
            return max(start - left, 0), min(start - left + len(turn), len(prompt))
    return None


def _last(prompt: Sequence[int], part: Sequence[int]) -> int | None:
    """Where the last run of the part begins."""
    first, size = part[0], len(part)
    for start in range(len(prompt) - size, -1, -1):
        if prompt[start] == first and prompt[start : start + size] == part:
            return start
    return None
