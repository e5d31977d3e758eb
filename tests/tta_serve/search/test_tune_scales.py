"""The scales of static merges, on a server whose answers are best at one that is known."""

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tta_serve.evaluation.test_arms import config
from tta_serve.evaluation.arms import HIGHEST_SCALE, MixRequest, RequestFactory
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.server_client import ServerClient
from tta_serve.search.tune_scales import NEAR, SCALES, tune_scales

BEST = {"merge-ties": 2.8, "merge-linear": 0.5}
WANT = "a b c d e f g h"
QUESTIONS = [Question("mixed", f"p {n}", WANT, kind="tokens") for n in range(3)]


class Served(ServerClient):
    """Answers with the fewer words of `WANT` the farther a merge's scale is from its best."""

    asked: Counter[MixRequest]

    async def answer(self, prompt: str, asked: MixRequest, most: int, **more: Any) -> Any:
        self.asked[asked] += 1
        [(name, scale)] = asked.experts.items()
        assert isinstance(scale, float)
        words = WANT.split()[: max(0, round(8 - 6 * abs(scale - BEST[name])))]
        message = SimpleNamespace(content=" ".join(words))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    async def tokenize(self, **request: Any) -> list[int]:
        return [1] * len(request["prompt"].split())


def test_each_merge_gets_the_scale_that_answers_best(tmp_path: Path) -> None:
    plain = config(tmp_path, {"near": {"type": "retrieval"}})
    mix = plain.mix.model_copy(update={"maximum": HIGHEST_SCALE})
    served = plain.model_copy(update={"mix": mix})
    server = Served("http://127.0.0.1:1", "key", RequestFactory("m", 4))
    server.asked = Counter()
    parts = []

    def step(title: str, count: int) -> Any:
        parts.append(count)
        return lambda: parts.append(-1)

    found = asyncio.run(tune_scales(server, served, ["ties", "linear"], step, QUESTIONS))
    assert found == {"ties": pytest.approx(2.8), "linear": 0.5}
    assert sum(parts) == 0
    assert server.asked.total() == 2 * len(QUESTIONS) * (len(SCALES) + len(NEAR))
