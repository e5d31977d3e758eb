"""A merge as most tools score it: write a checkpoint, load it into a fresh engine, ask."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from vllm import SamplingParams

from loadtest.sides.engines import EngineSide, Setup
from loadtest.sides.stock import merge_factors
from tta_serve.evaluation.questions import Question

_WEIGHTS = "model.safetensors"


def write_checkpoint(
    base: Path, folder: Path, coefficients: Mapping[str, float], setup: Setup
) -> None:
    """Write the base with a mix of experts added to its weights."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(_WEIGHTS))
    tensors = load_file(base / _WEIGHTS)
    for module, factor in merge_factors(coefficients, setup.library.experts).items():
        tensors[f"{module}.weight"] += factor.dense()
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})


def answer_by_checkpoint(
    setup: Setup,
    coefficients: Mapping[str, float],
    questions: Sequence[Question],
    limits: Sequence[int],
    template: str,
) -> list[str]:
    """Return the greedy answers of a merge, from nothing on.

    Args:
        setup: The base and the experts; the checkpoint is written to its folder, and deleted.
        coefficients: The merge's.
        questions: What it is asked, all at once.
        limits: The most tokens of each answer.
        template: The chat template.
    """
    folder = setup.folder / "merged"
    try:
        write_checkpoint(setup.base, folder, coefficients, setup)
        side = EngineSide(replace(setup, base=folder))
        try:
            found = side.llm.chat(
                [[{"role": "user", "content": question.prompt}] for question in questions],
                [SamplingParams(temperature=0, max_tokens=limit) for limit in limits],
                use_tqdm=False,
                chat_template=template,
            )
            return [output.outputs[0].text for output in found]
        finally:
            side.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
