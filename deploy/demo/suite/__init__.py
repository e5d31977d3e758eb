"""What policies are judged by: the demo's tasks as people would ask for them, and what is no task. All held out.

mixed         test prompts of every task, in random order
paraphrased   test phrasings that were written by hand, everyday ones with them (phrasings.py)
corrupted     the mixed prompts with typos, wrong case and missing words (corrupt.py)
two_skills    what takes two experts at once (two_skills.py)
everyday      no task: the base should answer
removed       the mixed prompts once more, to be asked while their expert is away
adversarial   in one task's words, for another task or none (adversarial.py)
"""

from __future__ import annotations

import random
from dataclasses import replace

from deploy.demo.everyday import everyday
from deploy.demo.suite.adversarial import adversarial
from deploy.demo.suite.core import question
from deploy.demo.suite.corrupt import RATES, corrupted
from deploy.demo.suite.phrasings import paraphrased
from deploy.demo.suite.two_skills import two_skills
from deploy.demo.tasks import TASKS
from tta_serve.evaluation.questions import CORRUPTED, EVERYDAY, MIXED, REMOVED, Question

LEAST_PAIRS = 12


def suite(n: int, seed: int = 5) -> list[Question]:
    """All slices; the same arguments give the same list.

    n: test prompts of each task, in every slice that is made of them. Of the adversarial ones there are half as many, at least
    four, and of each pair of skills at least twelve.   seed: scores were taken on lower ones when the experts were made
    """
    drawn = [(task, example) for task in TASKS for example in TASKS[task].examples("test", n, seed)]
    random.Random(seed).shuffle(drawn)
    mixed = [question(MIXED, task, example) for task, example in drawn]
    damaged = [
        replace(question(CORRUPTED, task, example, strength=strength), prompt=corrupted(example, strength, seed))
        for strength in RATES
        for task, example in drawn
    ]
    return [
        *mixed,
        *paraphrased(),
        *damaged,
        *two_skills(max(LEAST_PAIRS, n), seed),
        *(Question(EVERYDAY, prompt) for prompt in everyday("test")),
        *(replace(asked, slice=REMOVED) for asked in mixed),
        *adversarial(max(4, n // 2), seed),
    ]


__all__ = ["suite"]
