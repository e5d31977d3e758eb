"""A tiny library for the tests of what is made of one, a fresh one for each file of tests."""

from pathlib import Path

import pytest

from tests.tta_serve.tiny_library import NAMES, make, mixed
from tta_serve.mixed import Mixed


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's folder; the base's is `base` beside it."""
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def both(library: Path) -> Mixed:
    return mixed(library, *NAMES)
