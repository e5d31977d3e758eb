"""A library whose experts change another base stops the start."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from adapters.errors import LibraryError
from tests.made import make_expert
from tta_serve.config import load
from tta_serve.experts_cli import app
from tta_serve.plan import Plan


def llama(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_library_of_another_base_stops_the_start(tmp_path: Path) -> None:
    mine, other = llama(tmp_path / "mine", 0), llama(tmp_path / "other", 1)
    make_expert(tmp_path / "sql", mine, seed=0, layers=range(2))
    arguments = ["add", str(tmp_path / "sql"), "--name=sql", f"--base={mine}", f"--library={tmp_path / 'library'}"]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    settings = {"model.id": "m", "library.path": str(tmp_path / "library"), "default_policy": "base"}
    assert Plan.of(load(None, {**settings, "model.source": str(mine)})).digests.keys() == {"sql"}
    with pytest.raises(LibraryError, match="Experts of another base need a library of their own"):
        Plan.of(load(None, {**settings, "model.source": str(other)}))
