"""A tiny library for the tests of what is made of one, a fresh one for each file of tests."""

from pathlib import Path

import pytest

from tests.factories.tiny_library import NAMES, load_mixed, make_library
from tta_serve.offline.mixed_model import MixedModel


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's folder; the base's is `base` beside it."""
    return make_library(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def both(library: Path) -> MixedModel:
    return load_mixed(library, *NAMES)
