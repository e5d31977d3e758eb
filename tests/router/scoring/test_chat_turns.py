"""The user's turn among a prompt's tokens."""

import random
import time

import pytest

from router.scoring.chat_turns import find_turn


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
def test_the_last_place_of_a_turn(
    prompt: list[int], turn: list[int], found: tuple[int, int] | None
) -> None:
    assert find_turn(prompt, turn) == found


def test_a_long_prompt_is_searched_from_its_end() -> None:
    rng = random.Random(0)
    words = [rng.randrange(1000) for _ in range(8000)]
    assert find_turn(words, words[7000:7900]) == (7000, 7900)


def find_slowly(
    prompt: list[int], turn: list[int], *, first: bool = False
) -> tuple[int, int] | None:
    """Try every cut at every place, the fewest tokens left out first."""
    for out in range(9):
        for left in range(max(0, out - 4), min(4, out) + 1):
            part = turn[left : len(turn) - out + left]
            starts = range(len(prompt) - len(part) + 1)
            for start in starts if first else reversed(starts):
                if turn and 2 * out <= len(turn) and prompt[start : start + len(part)] == part:
                    return max(start - left, 0), min(start - left + len(turn), len(prompt))
    return None


def test_it_finds_what_a_search_of_everything_finds() -> None:
    rng = random.Random(1)
    cases = [
        [[rng.randrange(3) for _ in range(rng.randrange(most))] for most in (14, 9)]
        for _ in range(2000)
    ]
    for first in (False, True):
        found = [find_turn(*case, first=first) for case in cases]
        assert found == [find_slowly(*case, first=first) for case in cases]
        assert len(set(found)) > 50


def test_a_text_that_nearly_fits_everywhere_takes_no_longer() -> None:
    start = time.process_time()
    assert find_turn([1] * 20_000, [1] * 10_000 + [2] * 10) is None
    assert time.process_time() - start < 2  # a search of everything takes nine
