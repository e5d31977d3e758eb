"""What holds on vLLM's second model runner alone; test_second_runner runs it there."""

from pathlib import Path

import pytest

from adapters.errors import ExpertError
from tests.factories.dense import add_dense
from tests.factories.tiny_engines import BASES, tiny_engine, write_base
from tta_serve.engine.options import DenseOptions


def test_dense_experts_are_refused_by_name(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["llama"])
    library = add_dense(tmp_path / "library", base, "whole", seed=1)
    with (
        pytest.raises(ExpertError, match=r"dense experts .* unset VLLM_USE_V2_MODEL_RUNNER"),
        tiny_engine(base, library, dense=DenseOptions()),
    ):
        pass
