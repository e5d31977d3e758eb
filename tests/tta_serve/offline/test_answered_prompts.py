"""Wanted answers as a server would read and end them; greedy ones are in `test_mixed_model`."""

import pytest

from tests.factories.tiny_library import read_ids
from tta_serve.offline.answered_prompts import append_answer
from tta_serve.offline.base_model import MAX_TOKENS
from tta_serve.offline.mixed_model import MixedModel

END = 2
"""The tiny base's end of text."""


def test_a_wanted_answer_follows_the_prompt_and_is_ended(both: MixedModel) -> None:
    answered = append_answer(both.plain, "w5 w6", "w7 w8")
    assert answered.wanted.tolist() == [7, 8, END]
    assert answered.ids.tolist() == [[5, 6, 7, 8]]


def test_the_prompt_is_in_the_chat_template_and_the_end_is_the_tokenizers(
    both: MixedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = both.plain.tokenizer
    template = "w1 {{ messages[0].content }} w3"
    monkeypatch.setattr(tokenizer, "chat_template", template, raising=False)
    monkeypatch.setattr(both.plain.model.generation_config, "eos_token_id", [2, 9])
    assert append_answer(both.plain, "w5", "w7").wanted.tolist() == [7, END]
    monkeypatch.setattr(type(tokenizer), "eos_token_id", 9, raising=False)
    answered = append_answer(both.plain, "w5", "w7")
    assert answered.ids.tolist() == read_ids("w1 w5 w3 w7").tolist()
    assert answered.wanted.tolist() == [7, 9]


def test_a_base_without_an_end_ends_nothing(
    both: MixedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both.plain.model.generation_config, "eos_token_id", None)
    assert append_answer(both.plain, "w5", "w7").wanted.tolist() == [7]


def test_a_long_answer_is_cut(both: MixedModel) -> None:
    assert len(append_answer(both.plain, "w5", "w7 " * 2 * MAX_TOKENS).wanted) == MAX_TOKENS
