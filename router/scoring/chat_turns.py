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


def find_turn(prompt: Sequence[int], turn: Sequence[int]) -> tuple[int, int] | None:
    """Return the last place [start, end) at which a prompt has a turn's tokens, or None.

    A tokenizer may merge the ends of a turn with what stands beside it. A turn that is not there as
    it is, is looked for without up to 4 tokens at either end, as few as possible and at most half
    of it; the place found covers what was left out too.

    Args:
        prompt: The tokens of the whole prompt.
        turn: The tokens of the turn alone.
    """
    cuts = [
        (left, right)
        for left in range(_MERGED + 1)
        for right in range(_MERGED + 1)
        if 2 * (left + right) <= len(turn) and turn
    ]
    whole = _backwards(prompt)
    wanted = _backwards(turn)
    for left, right in sorted(cuts, key=sum):
        after = whole.find(wanted[right : len(turn) - left])
        if after >= 0:
            end = len(prompt) - after + right
            return max(end - len(turn), 0), min(end, len(prompt))
    return None


def _backwards(tokens: Sequence[int]) -> str:
    """Return a text with one character for each token, the last token first.

    For `str.find` takes linear time whatever the text, `str.rfind` does not.
    """
    return "".join(map(chr, reversed(tokens)))
