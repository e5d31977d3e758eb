"""Mixture slots on vLLM's second model runner: what holds on the first one holds there too.

The tests of the first one run again, in a process that starts with it. Left out is what Triton's
interpreter cannot do, which is sampling at a temperature, and dense experts, which are refused.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.factories import second_runner

HERE = Path(__file__).parent
INLINE = [
    "decisions_are_those_of_plain_transformers_and_used_above_the_layer_that_makes_them",
    "a_batch_of_all_kinds_gives_each_what_it_gets_alone",
    "long_turns_are_decided_by_the_chunk_that_ends_them",
    "one_that_is_preempted_and_computed_again_keeps_its_decision[True]",
    "features_are_the_mean_over_the_turn",
    "an_expert_that_is_gone_is_not_chosen_any_more",
]
TESTS = [
    *(f"test_inline.py::test_{name}" for name in INLINE),
    "test_acts_from.py::test_a_batch_of_all_kinds",
    "test_acts_from.py::test_all_mixes_and_the_base_share_what_stands_before",
    "test_head_and_embedding.py::test_mixes_of_one_batch_are_dense_merges",
    "test_head_and_embedding.py::test_log_probabilities_of_prompts_are_those_of_each_requests_mix",
    "on_second_runner.py",
]


def test_what_holds_on_the_first_runner_holds_on_the_second() -> None:
    plugins = ["-p", second_runner.__name__, "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *(str(HERE / t) for t in TESTS)]
    done = subprocess.run(
        command,
        check=False,
        cwd=HERE.parents[1],
        env=os.environ | second_runner.SETTINGS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " skipped" not in done.stdout
