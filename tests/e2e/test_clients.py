"""Five of other people's clients, each in an environment of its own, against the running demo.

All of them are run by `python -m tests.clients --url URL`.
"""

import pytest

from tests.clients.catalog import CLIENTS
from tests.clients.environments import MAKE_LIMIT_S
from tests.clients.runner import JOB_LIMIT_S, run_client
from tests.e2e.conftest import Demo

FIVE = ("anthropic", "langchain_openai", "litellm", "pydantic_ai", "instructor")


@pytest.mark.timeout(4 * MAKE_LIMIT_S + JOB_LIMIT_S)
@pytest.mark.parametrize("name", FIVE)
def test_a_client_does_its_ordinary_job(demo: Demo, name: str) -> None:
    outcome = run_client(CLIENTS[name], demo.url)
    assert not outcome.failures, f"{outcome.failures}; all it said: {outcome.log}"
    assert outcome.passed
