"""Two minutes of `python -m loadtest soak`, against the server of these tests."""

import asyncio

import pytest

from loadtest.commands.soak import Soak, SoakTarget
from tests.e2e.conftest import ADMIN_KEY, Demo


@pytest.mark.long
def test_random_mixes_and_changing_experts_give_no_wrong_answer(demo: Demo) -> None:
    target = SoakTarget(demo.url, ADMIN_KEY, demo.experts, demo.process.pid)
    report = asyncio.run(Soak(target).run(2))
    assert report.clean, report
    assert report.answers > 50
    assert report.changes > 10
    assert report.cancelled > 0
    assert report.memory_growth < 0.05, report.memory_mib
