"""The user's turn among a prompt's tokens."""

import random

import pytest

from router.turns import span


@pytest.mark.parametrize(
    ("prompt", "turn", "found"),
    [
        ([9, 9, 1, 2, 3, 8], [1, 2, 3], (2, 5)),
        ([1, 2, 3], [1, 2, 3], (0, 3)),
        ([1, 2, 0, 1, 2], [1, 2], (3, 5)),
        ([9, 7, 2, 3, 8], [1, 2, 3], (1, 4)),  # the first token merged with the template
        ([9, 1, 2, 7, 8], [1, 2, 3], (1, 4)),  # the last one
        ([5, 2, 3], [1, 2, 3], (0, 3)),
        ([4, 5, 6], [1, 2, 3], None),
        ([4, 5, 6], [], None),
        ([1, 2], [1, 2, 3, 4, 5, 6, 7, 8], None),
    ],
)
def test_the_last_place_of_a_turn(prompt: list[int], turn: list[int], found: tuple[int, int] | None) -> None:
    assert span(prompt, turn) == found


def test_a_long_prompt_is_searched_from_its_end() -> None:
    rng = random.Random(0)
    words = [rng.randrange(1000) for _ in range(8000)]
    assert span(words, words[7000:7900]) == (7000, 7900)
