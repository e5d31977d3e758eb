"""Densities and scales of static merges, on a server whose best answers are known."""

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tta_serve.evaluation.test_arms import config
from tta_serve.evaluation.arms import HIGHEST_SCALE, MixRequest, RequestFactory
from tta_serve.evaluation.merge_variants import MergeVariant
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.server_client import ServerClient
from tta_serve.search.tune_scales import FINALISTS, NEAR, SCALES, tune_scales

BEST = {"merge-ties-density-0.2": 4.9, "merge-ties-density-0.5": 2.8, "merge-linear": 0.5}
MERGES = [MergeVariant("ties", 0.2), MergeVariant("ties", 0.5), MergeVariant("linear")]
WANT = "a b c d e f g h"
QUESTIONS = [Question("mixed", f"p {n}", WANT, kind="tokens") for n in range(6)]


class Served(ServerClient):
    """Answers with the fewer words of `WANT` the farther a merge's scale is from its best.

    The best of TIES with density 0.2 is at no scale that is asked.
    """

    asked: Counter[MixRequest]

    async def answer(self, prompt: str, asked: MixRequest, most: int, **more: Any) -> Any:
        self.asked[asked] += 1
        [(name, scale)] = asked.list_segments()[0].items()
        assert isinstance(scale, float)
        words = WANT.split()[: max(0, round(8 - 6 * abs(scale - BEST[name])))]
        message = SimpleNamespace(content=" ".join(words))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    async def tokenize(self, **request: Any) -> list[int]:
        return [1] * len(request["prompt"].split())


def test_each_method_gets_the_density_and_the_scale_that_answer_best(tmp_path: Path) -> None:
    plain = config(tmp_path, {"near": {"type": "retrieval"}})
    mix = plain.mix.model_copy(update={"maximum": HIGHEST_SCALE})
    served = plain.model_copy(update={"mix": mix})
    server = Served("http://127.0.0.1:1", "key", RequestFactory("m", 4))
    server.asked = Counter()
    parts = []

    def step(title: str, count: int) -> Any:
        parts.append(count)
        return lambda: parts.append(-1)

    ties, linear = asyncio.run(tune_scales(server, served, MERGES, step, QUESTIONS))
    assert (ties.variant, linear.variant) == (MERGES[1], MERGES[2])
    assert [ties.scale, linear.scale] == pytest.approx([2.8, 0.5])
    assert sum(parts) == 0
    first, final = len(MERGES) * len(SCALES) * 2, 2 * FINALISTS * 4
    assert server.asked.total() == first + final + 2 * len(NEAR) * len(QUESTIONS)
