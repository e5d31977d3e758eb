import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh for each test, so that no test's draws depend on which others ran."""
    return np.random.default_rng(1)
