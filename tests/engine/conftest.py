"""One engine for all engine tests: the demo's base and experts, and three of other ranks."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.library.library import Library
from tests.factories.engines import Engine
from tests.factories.experts import make_expert
from tests.reference import Reference


@pytest.fixture(scope="session")
def library(base: Path, demo_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    root = tmp_path_factory.mktemp("library")
    shutil.copytree(demo_experts, root, dirs_exist_ok=True)
    make_expert(root / "small", base, seed=1, rank=4, alpha=4)
    make_expert(
        root / "rslora", base, seed=2, rank=16, alpha=8, use_rslora=True, layers=range(0, 30, 3)
    )
    make_expert(
        root / "pattern",
        base,
        seed=3,
        rank=8,
        modules=("self_attn.q_proj", "self_attn.v_proj"),
        ranks={"v_proj": 2},
    )
    return Library.open(root)


@pytest.fixture(scope="session")
def reference(base: Path) -> Reference:
    return Reference(base)


@pytest.fixture(scope="session")
def engine(base: Path, library: Library) -> Iterator[Engine]:
    engine = Engine(base, library)
    yield engine
    engine.close()
