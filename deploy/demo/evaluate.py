"""Greedy exact match of the base or of an expert on a task's examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

from deploy.demo.model import EXPERTS, encode_answer, encode_prompt, load_base
from deploy.demo.results import update_result
from deploy.demo.tasks import TASKS, Example, Split

BATCH = 25
# The test's moves on when a generator changes after a test score was seen: no expert then has
# answered its prompts before.
SEEDS: dict[Split, int] = {"validation": 0, "test": 2}


def exact_match(answer: str, want: str) -> bool:
    """Return whether the answer is the wanted one, blanks around it aside."""
    return answer.strip() == want.strip()


def generate_answers(
    model: Any, tokenizer: Any, examples: Sequence[Example]
) -> Iterator[tuple[Example, str]]:
    """Yield every example with the model's greedy answer to it, in batches of similar length."""
    encoded = sorted(
        ((encode_prompt(tokenizer, e.prompt), e) for e in examples), key=lambda pair: len(pair[0])
    )
    # An answer that is not over by then is longer than any wanted one, hence wrong.
    limit = max(len(encode_answer(tokenizer, example.answer)) for example in examples) + 4
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
    model: Any, tokenizer: Any, task: str, split: Split, n: int
) -> tuple[float, list[tuple[Example, str]]]:
    """Return the share of right answers, and the wrong ones."""
    examples = TASKS[task].examples(split, n, SEEDS[split])
    wrong = [
        (e, text)
        for e, text in generate_answers(model, tokenizer, examples)
        if not exact_match(text, e.answer)
    ]
    return 1 - len(wrong) / n, wrong


def evaluate(
    task: str, split: Split, n: int, *, expert: bool
) -> tuple[float, list[tuple[Example, str]]]:
    """Score the base alone or the task's expert from its folder."""
    model, tokenizer = load_base()
    if expert:
        model = PeftModel.from_pretrained(model, str(EXPERTS / task)).merge_and_unload()
    return score(model.eval(), tokenizer, task, split, n)


def evaluate_test(task: str, n: int) -> tuple[float, float]:
    """Score base and expert on the held-out test split, and keep both in the results."""
    base, _ = evaluate(task, "test", n, expert=False)
    expert, _ = evaluate(task, "test", n, expert=True)
    update_result(task, base=base, expert=expert, n=n)
    return base, expert
