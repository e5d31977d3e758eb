"""Prompts of a conversation, spelt letter by letter, and the places of turns in them."""

from typing import Any

from tta_serve.engine.client.placement import PromptPlacer, UserTurns
from tta_serve.serving.routing.route import RequestRoute

SYSTEM = "be nice. "


class Letters:
    """A tokenizer each of whose tokens is a character."""

    chat_template: str | None = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


class Chat:
    """A conversation that grows by a turn and its answer."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.placer = PromptPlacer(Letters(), 512)

    @property
    def text(self) -> str:
        """The prompt: the answers are dots."""
        return SYSTEM + " ... ".join(self.said)

    @property
    def tokens(self) -> list[int]:
        return Letters().encode(self.text, add_special_tokens=False)

    @property
    def last(self) -> int:
        """The first token of the last turn."""
        return len(self.tokens) - len(self.said[-1])

    def place(self, route: RequestRoute, turn: str) -> Any:
        """Say the next turn. Returns what the engine runs it as."""
        self.said.append(turn)
        return self.place_again(route)

    def place_again(self, route: RequestRoute) -> Any:
        turns = UserTurns(self.said[0], self.said[-1])
        return route.turn.place(self.placer, self.tokens, turns)
