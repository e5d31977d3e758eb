"""Files written one tensor at a time: the same to safetensors' own reader."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adapters.files.safetensors_reader import TensorFile
from adapters.files.safetensors_writer import TensorWriter, save

TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(5).bfloat16(),
    "wide": torch.randn(4, 3),
    "slanted": torch.randn(6, 2).t(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    save(TENSORS, tmp_path / "file.safetensors")
    read = load_file(tmp_path / "file.safetensors")
    assert (
        read.keys()
        == TENSORS.keys()
        == TensorFile.open(tmp_path / "file.safetensors").tensors.keys()
    )
    assert all(
        torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype
        for name, tensor in TENSORS.items()
    )
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError):
        save(TENSORS, tmp_path / "file.safetensors")
    assert (tmp_path / "file.safetensors").read_text(encoding="utf-8") == "precious"


def test_what_comes_must_be_what_was_told(tmp_path: Path) -> None:
    kinds = {"a": (torch.float32, (2,)), "b": (torch.float32, (3,))}
    with (
        pytest.raises(AssertionError, match="missing"),
        TensorWriter(tmp_path / "1", kinds) as writer,
    ):
        writer.add("a", torch.zeros(2))
    with (
        pytest.raises(AssertionError, match="not the next"),
        TensorWriter(tmp_path / "2", kinds) as writer,
    ):
        writer.add("b", torch.zeros(3))
    with (
        pytest.raises(AssertionError, match="not as it was said"),
        TensorWriter(tmp_path / "3", kinds) as writer,
    ):
        writer.add("a", torch.zeros(3))
