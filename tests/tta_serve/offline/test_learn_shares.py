"""CAT: shares that sum to 1, learned on wanted answers."""

from collections.abc import Sequence

import pytest

from adapters.coefficient import numbers_of
from adapters.mix import MixRules
from tests.factories.tiny_library import NAMES
from tests.tta_serve.offline.test_cocktail import own_answers
from tta_serve.offline.answered_prompts import AnsweredPrompt
from tta_serve.offline.learn_shares import ShareSettings, learn_shares
from tta_serve.offline.mixed_model import MixedModel

RULES = MixRules(frozenset(NAMES), 2)


def learn_from(
    both: MixedModel, examples: Sequence[Sequence[AnsweredPrompt]], settings: ShareSettings
) -> dict[str, list[float]]:
    found = learn_shares(both, examples, RULES, settings)
    if settings.rate:
        assert found.after < found.before
    return {name: [*numbers_of(found.coefficients[name])] for name in found.coefficients}


def test_the_expert_whose_answers_are_wanted_gets_all(both: MixedModel) -> None:
    found = learn_shares(both, [own_answers(both, 1)], RULES, ShareSettings(60, 0.3))
    assert found.coefficients == {NAMES[1]: 1.0}
    assert found.after < 1 < found.before


def test_shares_of_each_layer_sum_to_1(both: MixedModel) -> None:
    examples = [own_answers(both, 0), own_answers(both, 1)]
    found = learn_from(both, examples, ShareSettings(8, 0.1))
    assert found[NAMES[0]] != [0.5, 0.5]
    for pair in zip(found[NAMES[0]], found[NAMES[1]], strict=True):
        assert sum(pair) == pytest.approx(1, abs=0.051)


def test_every_expert_has_an_equal_share_at_first(both: MixedModel) -> None:
    found = learn_from(both, [own_answers(both, 0)], ShareSettings(1, 0.0))
    assert found == {name: [0.5] for name in NAMES}, "what is equal in all layers is one number"


def test_groups_count_alike_however_many_examples_they_have(both: MixedModel) -> None:
    math, sql = own_answers(both, 0), own_answers(both, 1)
    still = ShareSettings(1, 0.0)
    found = learn_shares(both, [math[:1], sql], RULES, still)
    alone = [learn_shares(both, [own], RULES, still).before for own in (math[:1], sql)]
    assert found.before == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_one_share_an_expert_is_one_number(both: MixedModel) -> None:
    settings = ShareSettings(8, 0.1, per_layer=False)
    found = learn_from(both, [own_answers(both, 0), own_answers(both, 1)], settings)
    assert all(len(values) == 1 for values in found.values())
