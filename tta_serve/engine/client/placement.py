"""Where in a prompt a mix begins to act, and what the tokens before it run as."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from router.decision import ActsFrom
from router.scoring import chat_turns
from tta_serve.engine.wire import EARLIER, EarlierMix

_MOST_PARTS = 64


class UserTurns(NamedTuple):
    """The texts of a chat's first and last user turns; None where the prompt is no chat."""

    first: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class PromptHistory:
    """What the tokens of a conversation ran as, up to the end of its latest prompt."""

    parts: tuple[EarlierMix, ...]
    """The mixes in their order; the base before the first one."""
    tokens: int
    """How long the prompt was."""
    digest: str
    """Of its tokens."""

    @classmethod
    def of(cls, tokens: Sequence[int], parts: Sequence[EarlierMix]) -> "PromptHistory":
        return cls(tuple(parts), len(tokens), _digest(tokens))

    def continues_in(self, tokens: Sequence[int]) -> bool:
        """Return whether another prompt begins with the one that this is of."""
        return len(tokens) > self.tokens and _digest(tokens[: self.tokens]) == self.digest


@dataclass(frozen=True)
class Placement:
    """Where in a prompt a mix acts."""

    acts_from: ActsFrom
    """What that is called."""
    start: int
    """The first token."""
    turn: tuple[int, int]
    """The tokens [start, end) of the last user turn that routing reads."""
    earlier: tuple[EarlierMix, ...] = ()
    """What tokens before `start` run as, if not as the base."""


class PromptPlacer:
    """Finds turns among the tokens of prompts."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        """Take what reads prompts.

        Args:
            tokenizer: The base's.
            most: The most tokens of a turn that routing reads.
        """
        self._tokenizer = tokenizer
        self._most = most

    def find_turn(self, tokens: Sequence[int], text: str | None) -> tuple[int, int]:
        """Return which tokens [start, end) of a prompt are the last user turn.

        It is cut to its first tokens, as far as routing reads, and is the whole prompt if the text
        is None or is not found in it.
        """
        start, end = self._find_last(tokens, text) or (0, len(tokens))
        return start, min(end, start + self._most)

    def place(
        self,
        tokens: Sequence[int],
        acts_from: ActsFrom,
        turns: UserTurns,
        history: PromptHistory | None = None,
    ) -> Placement:
        """Return where a mix acts in a prompt.

        In a conversation it acts from the last turn, after what its earlier turns ran as.

        Args:
            tokens: The prompt's.
            acts_from: Where the mix of a first turn begins.
            turns: The texts to look for.
            history: What earlier turns ran as.
        """
        found = self._find_last(tokens, turns.last)
        start, end = found or (0, len(tokens))
        turn = start, min(end, start + self._most)
        if history is not None and found and history.continues_in(tokens):
            rows = {part.row for part in history.parts}
            few = len(rows) <= EARLIER and len(history.parts) <= _MOST_PARTS
            if few and start >= history.tokens:
                return Placement("last_user_turn", start, turn, history.parts)

        begins = self._find_start(tokens, acts_from, turns, start)
        return Placement(acts_from if begins else "start", begins, turn)

    def _find_start(
        self, tokens: Sequence[int], acts_from: ActsFrom, turns: UserTurns, last: int
    ) -> int:
        """Return the token from which a first mix acts, 0 if it is not found."""
        if acts_from == "user_turn" and turns.first is not None:
            found = chat_turns.find_turn(tokens, self._encode(turns.first), first=True)
            return found[0] if found else 0
        if acts_from == "last_user_turn":
            return last
        if acts_from == "answer":
            return len(tokens) - max(self._count_opening(tokens), 1)
        return 0

    def _find_last(self, tokens: Sequence[int], text: str | None) -> tuple[int, int] | None:
        return None if text is None else chat_turns.find_turn(tokens, self._encode(text))

    def _count_opening(self, tokens: Sequence[int]) -> int:
        """Return with how many tokens a prompt opens the answer."""
        opening = self._opening
        return len(opening) if opening and list(tokens[-len(opening) :]) == opening else 0

    @cached_property
    def _opening(self) -> list[int]:
        return chat_turns.encode_opening(self._tokenizer)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text.strip(), add_special_tokens=False))


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()
