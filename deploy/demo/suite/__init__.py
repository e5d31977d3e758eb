"""The questions that policies are judged by, all of them held out.

They are the demo's tasks as people would ask for them, and what is no task. The slices are:

- mixed: test prompts of every task, in random order
- paraphrased: test phrasings that were written by hand, everyday ones with them (phrasings.py)
- corrupted: the mixed prompts with typos, wrong case and missing words (corrupt.py)
- two_skills: what takes two experts at once (two_skills.py)
- everyday: no task, the base should answer
- removed: the mixed prompts once more, to be asked while their expert is away
- voices: what two people asked whom the gate has not heard; only who answers is judged (../voices)
- adversarial: in one task's words, for another task or none (adversarial.py)
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from deploy.demo.everyday import read_everyday
from deploy.demo.suite.adversarial import draw_adversarial
from deploy.demo.suite.corrupt import RATES, corrupt_prompt
from deploy.demo.suite.phrasings import read_paraphrased
from deploy.demo.suite.question_parts import make_question
from deploy.demo.suite.two_skills import draw_two_skills
from deploy.demo.tasks import TASKS
from deploy.demo.voices import TEST, read_spoken_voices
from tta_serve.evaluation.questions import CORRUPTED, EVERYDAY, MIXED, REMOVED, VOICES, Question

LEAST_PAIRS = 8


def draw_suite(n: int, seed: int = 5) -> list[Question]:
    """Draw the questions of all slices; the same arguments give the same list.

    Args:
        n: Test prompts of each task, in every slice that is made of them. Of the adversarial ones
            there are half as many, at least four, and of each pair of skills at least eight.
        seed: Scores were taken on lower ones when the experts were made.
    """
    drawn = [(task, example) for task in TASKS for example in TASKS[task].examples("test", n, seed)]
    random.Random(seed).shuffle(drawn)
    mixed = [make_question(MIXED, task, example) for task, example in drawn]
    damaged = [
        replace(
            make_question(CORRUPTED, task, example, strength=strength),
            prompt=corrupt_prompt(example, strength, seed),
        )
        for strength in RATES
        for task, example in drawn
    ]
    return [
        *mixed,
        *read_paraphrased(),
        *damaged,
        *draw_two_skills(max(LEAST_PAIRS, n), seed),
        *(Question(EVERYDAY, prompt) for prompt in read_everyday("test")),
        *(replace(asked, slice=REMOVED) for asked in mixed),
        *draw_adversarial(max(4, n // 2), seed),
        *(
            Question(VOICES, spoken.prompt, task=spoken.task)
            for voice in read_spoken_voices(TEST).values()
            for spoken in voice
        ),
    ]


def draw_tuning(n: int, suite: Iterable[Question], seed: int = 5) -> list[Question]:
    """Draw questions to tune static merges by, none of which is in the suite.

    Args:
        n: Validation prompts of each task, and questions of each pair of skills.
        suite: What is judged by later.
        seed: The suite's.
    """
    asked = {question.prompt for question in suite}
    drawn = [
        make_question(MIXED, task, example)
        for task in TASKS
        for example in TASKS[task].examples("validation", n, seed)
    ]
    drawn += draw_two_skills(n, seed + 1)
    return [question for question in drawn if question.prompt not in asked]


__all__ = ["draw_suite", "draw_tuning"]
