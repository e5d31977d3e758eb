"""LM-Cocktail: weights by their formula, of losses that merged weights have."""

import math
from pathlib import Path

import pytest
import torch

from adapters.errors import MixError
from adapters.library.library import Library
from adapters.mix import MixRules
from tests.factories.tiny_library import EXAMPLES, NAMES
from tests.reference import Reference
from tta_serve.offline.answered_prompts import AnsweredPrompt, answer_greedily, append_answer
from tta_serve.offline.cocktail import make_cocktail, weigh
from tta_serve.offline.mixed_model import MixedModel

RULES = MixRules(frozenset(NAMES), 2)


def own_answers(both: MixedModel, expert: int) -> list[AnsweredPrompt]:
    """Return what an expert answers to two of its prompts."""
    found = []
    for prompt in EXAMPLES[NAMES[expert]][:2]:
        sample = both.make_sample(expert, prompt, 4)
        last = both.predict(sample, both.isolate(expert)).logits[-1:].argmax(-1)
        start = sample.ids.shape[1] - sample.answer + 1
        found.append(AnsweredPrompt(sample.ids, torch.cat([sample.ids[0, start:], last])))
    return found


def test_weights_are_a_softmax_of_losses_by_tau() -> None:
    assert weigh([1.0, 1.0 + 5 * math.log(2)], 5.0) == pytest.approx([2 / 3, 1 / 3])
    assert weigh([1.0, 1.0 + math.log(2)], 1.0) == pytest.approx([2 / 3, 1 / 3])


def test_losses_are_those_of_merged_weights_and_the_base_has_its_share(
    library: Path, both: MixedModel
) -> None:
    texts = [("w5 w6 w7", "w8 w9"), ("w5 w5", "w4 w3 w2 w1")]
    made = make_cocktail(both, [append_answer(both.plain, *text) for text in texts], RULES)
    reference, experts = Reference(library.parent / "base"), Library.open(library).experts
    for name, mix in {"base": {}, **{name: {name: 1.0} for name in NAMES}}.items():
        losses = []
        with reference.merged(experts, mix):
            for prompt, want in texts:
                asked, answer = ([int(w[1:]) for w in text.split()] for text in (prompt, want))
                answer.append(2)  # the tiny base's end of text
                logs = reference.logprobs(asked, answer)
                losses.append(-sum(float(logs[n, t]) for n, t in enumerate(answer)) / len(answer))
        assert made.losses[name] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert sum(made.weights.values()) == pytest.approx(1)
    assert list(made.weights.values()) == pytest.approx(weigh([*made.losses.values()], 5.0))
    for name in NAMES:
        assert made.coefficients.get(name, 0.0) == RULES.snap(made.weights[name])


def test_a_cold_cocktail_is_the_expert_whose_answers_are_wanted(both: MixedModel) -> None:
    told = []
    made = make_cocktail(both, own_answers(both, 1), RULES, 1e-3, lambda: told.append(1))
    assert made.coefficients == {NAMES[1]: 1.0}
    assert len(told) == 2 * 3


def test_where_the_base_alone_is_wanted_no_entry_is_made(both: MixedModel) -> None:
    answers = [answer_greedily(both.plain, prompt, 4) for prompt in EXAMPLES["sql"][:2]]
    with pytest.raises(MixError, match=r"0 on the grid of 0\.05: name fewer experts"):
        make_cocktail(both, answers, RULES, 1e-3)
