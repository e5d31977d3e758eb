"""Where a user's turn stands in a prompt, and how a chat template words it."""

from collections.abc import Sequence
from typing import Any

# So many tokens at an end of a turn may have become others, beside what the template puts there.
_MERGED = 4


def encode_turn(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text as the one user turn of the chat template.

    They go up to where the answer starts.

    Args:
        tokenizer: One of transformers, with a chat template.
        text: What the user says.
    """
    turns = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(whole, add_special_tokens=False))


def encode_opening(tokenizer: Any) -> list[int]:
    """Return the tokens with which a chat template opens an answer, none if there is no template.

    Args:
        tokenizer: One of transformers.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "?"}]
    asked, opened = (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens)
        for opens in (False, True)
    )
    if not opened.startswith(asked):
        return []
    return list(tokenizer.encode(opened[len(asked) :], add_special_tokens=False))


def find_turn(
    prompt: Sequence[int], turn: Sequence[int], *, first: bool = False
) -> tuple[int, int] | None:
    """Return the last place [start, end) at which a prompt has a turn's tokens, or None.

    A tokenizer may merge the ends of a turn with what stands beside it. A turn that is not there as
    it is, is looked for without up to 4 tokens at either end, as few as possible and at most half
    of it; the place found covers what was left out too.

    Args:
        prompt: The tokens of the whole prompt.
        turn: The tokens of the turn alone.
        first: Whether to return the first such place.
    """
    cuts = [
        (left, right)
        for left in range(_MERGED + 1)
        for right in range(_MERGED + 1)
        if 2 * (left + right) <= len(turn) and turn
    ]
    whole = _as_text(prompt)
    wanted = _as_text(turn)
    backwards = whole[::-1]
    for left, right in sorted(cuts, key=sum):
        part = wanted[left : len(turn) - right]
        after = whole.find(part) if first else backwards.find(part[::-1])
        if after >= 0:
            start = (after if first else len(prompt) - after - len(part)) - left
            return max(start, 0), min(start + len(turn), len(prompt))
    return None


def find_last(prompt: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where some tokens stand in a prompt for the last time, None if nowhere."""
    after = _as_text(prompt)[::-1].find(_as_text(part)[::-1])
    return None if after < 0 else len(prompt) - after - len(part)


def _as_text(tokens: Sequence[int]) -> str:
    """Return a text with one character for each token.

    It is searched by `str.find`, backwards in reverse: that takes linear time whatever the text,
    and `str.rfind` does not.
    """
    return "".join(map(chr, tokens))
