"""Tasks of lm-evaluation-harness: answers are cut out and compared as it does."""

import pytest

from tta_serve.evaluation.match_rules import ExtractionStep, MatchRule
from tta_serve.evaluation.scoring import Score, score


@pytest.mark.parametrize(
    ("step", "text", "found"),
    [
        (ExtractionStep(), " a b\n", "a b"),
        (ExtractionStep(r"#### (\d+)"), "so #### 42 or #### 43", "42"),
        (ExtractionStep(r"#### (\d+)", -1), "so #### 42 or #### 43", "43"),
        (ExtractionStep(r"\w+ is"), "it is", "it is"),  # no group: the whole match
        (ExtractionStep(r"(\$\d+)|(\d+)"), "it is 7", "7"),  # the group that is not empty
        (ExtractionStep(r"(a?)(b?)c"), "c", "[invalid]"),  # matched, but no group has anything
        (ExtractionStep(r"#### (\d+)"), "42", "[invalid]"),
        (ExtractionStep(r"\d", 1, "none"), "7", "none"),  # fewer places than are wanted
        (ExtractionStep(r"the( \w+ )is"), "the answer is", "answer"),
    ],
)
def test_a_step_takes_what_matches(step: ExtractionStep, text: str, found: str) -> None:
    assert step.apply(text) == found


@pytest.mark.parametrize(
    ("rule", "answer", "right"),
    [
        (MatchRule(), "Paris", True),
        (MatchRule(), " Paris", False),  # blanks count, unless a step takes them off
        (MatchRule(steps=(ExtractionStep(),)), " Paris", True),
        (MatchRule(ignore_case=True), "paris", True),
        (MatchRule(), "paris", False),
        (MatchRule(ignore_punctuation=True), "Paris.", True),
        (MatchRule(ignore_numbers=True), "Paris15", True),
        (MatchRule(regexes_to_ignore=(r"^The ", r"\.$")), "The Paris.", True),
        (MatchRule(stops=("\n",)), "Paris\nLyon", True),
        (MatchRule(alternatives=("Paname",)), "Paname", True),
        (MatchRule(alternatives=("Paname",)), "Lyon", False),
    ],
)
def test_both_sides_are_made_alike_before_they_are_compared(
    rule: MatchRule, answer: str, right: bool
) -> None:
    assert score("match", "Paris", (), answer, rule) == Score(float(right), float(right))


def test_what_is_ignored_is_ignored_on_both_sides_and_before_case() -> None:
    rule = MatchRule(regexes_to_ignore=("[A-Z]+-",), ignore_case=True)
    assert rule.accepts("AB-x", "CD-X")
    assert not rule.accepts("ab-x", "cd-x")


@pytest.mark.parametrize("broken", ["(", "[a", "*"])
def test_what_is_no_regular_expression_is_said(broken: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        ExtractionStep(broken)
    with pytest.raises(ValueError, match="is no regular expression"):
        MatchRule(regexes_to_ignore=(broken,))
    with pytest.raises(ValueError, match="empty text"):
        MatchRule(stops=("",))
