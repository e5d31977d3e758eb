"""A mix is folded once it has paid for it, and no sooner."""

import random

from tta_serve.engine.worker.dense.fold_decision import FoldDecision


def test_a_mix_is_folded_when_its_slots_have_cost_as_much_and_goes_with_the_next() -> None:
    decision = FoldDecision[str]()
    for step in range(12):
        assert decision.decide("a", 1.0) == (None if step < 10 else "a")
        if decision.folded is None:
            decision.note(0.1001)
    assert decision.decide("b", 1.0) is None
    assert decision.decide("a", 1.0) is None, "it must pay anew"
    assert decision.decide(None, 0.0) is None


def test_one_that_cannot_be_folded_is_left_alone_until_another_came() -> None:
    decision = FoldDecision[str]()
    decision.note(2.0)
    decision.decide("a", 1.0)
    decision.note(2.0)
    assert decision.decide("a", 1.0) == "a"
    decision.refuse()
    decision.note(100.0)
    assert decision.decide("a", 1.0) is None


def test_never_more_than_twice_the_least_is_spent() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        decision, spent, least = FoldDecision[str](), 0.0, 0.0
        for _ in range(20):
            length, mix = rng.randint(1, 60), rng.choice("abc")
            least += min(length * 0.1, 1.0)
            for _ in range(length):
                before = decision.folded
                now = decision.decide(mix + str(least), 1.0)
                spent += 1.0 if now and not before else 0.0
                if now is None:
                    decision.note(0.1)
                    spent += 0.1
        assert spent <= 2 * least + 0.2 * 20
