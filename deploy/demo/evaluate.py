"""Greedy answers of the base or of an expert to a task's examples, and how many are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from deploy.demo.model import EXPERTS, encode_answer, encode_prompt, load_base
from deploy.demo.results import update_result
from deploy.demo.tasks import TASKS, Example, Split
from deploy.demo.voices import TEST, list_examples

BATCH = 25
# The test's moves on when a generator changes after a test score was seen: no expert then has
# answered its prompts before.
SEEDS: dict[Split, int] = {"validation": 0, "test": 2}
_MORE = 48


def generate_answers(
    model: Any, tokenizer: Any, examples: Sequence[Example]
) -> Iterator[tuple[Example, str]]:
    """Yield every example with the model's greedy answer to it, in batches of similar length."""
    encoded = sorted(
        ((encode_prompt(tokenizer, e.prompt), e) for e in examples), key=lambda pair: len(pair[0])
    )
    # An answer may be worked out in more lines than the wanted one; one that goes on is wrong.
    limit = max(len(encode_answer(tokenizer, example.answer)) for example in examples) + _MORE
    for start in range(0, len(encoded), BATCH):
        part = encoded[start : start + BATCH]
        batch = tokenizer.pad(
            {"input_ids": [ids for ids, _ in part]}, padding_side="left", return_tensors="pt"
        )
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=limit, do_sample=False)
        texts = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        yield from zip((example for _, example in part), texts, strict=True)


def score(
    model: Any, tokenizer: Any, task: str, examples: Sequence[Example]
) -> tuple[float, list[tuple[Example, str]]]:
    """Return the share of right answers to a task's examples, and the wrong ones."""
    wrong = [
        (e, text)
        for e, text in generate_answers(model, tokenizer, examples)
        if not TASKS[task].is_right(text, e.answer)
    ]
    return 1 - len(wrong) / len(examples), wrong


def draw_examples(task: str, split: Split, n: int) -> list[Example]:
    """Draw the generated examples of a split that scores are of."""
    return TASKS[task].examples(split, n, SEEDS[split])


class ExpertScores(NamedTuple):
    """How a task is answered, as shares of right answers."""

    base: float
    """By the base alone, on generated prompts of the test split."""
    expert: float
    """By the task's expert, on the same prompts."""
    strangers: float
    """By the expert, on what two people asked of whom no training knows (../voices/test)."""


def evaluate_test(task: str, n: int) -> ExpertScores:
    """Score base and expert on what is held out, and keep the scores in the results."""
    examples = draw_examples(task, "test", n)
    spoken = list_examples(task, TEST)
    model, tokenizer = load_base()
    base, _ = score(model.eval(), tokenizer, task, examples)
    expert = PeftModel.from_pretrained(model, str(EXPERTS / task)).merge_and_unload().eval()
    scores = ExpertScores(base, *(score(expert, tokenizer, task, e)[0] for e in (examples, spoken)))
    update_result(task, **scores._asdict(), n=n, strangers_n=len(spoken))
    return scores
