"""The file of trained gates: what is written is read, and nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.bank.layer_gates import LayerGate, read_gates, write_gates
from adapters.errors import LibraryError

GATES = {
    "a1": {
        "model.layers.0.mlp.up_proj": LayerGate(torch.tensor([1.0, 0.5]), -0.25),
        "lm": LayerGate(torch.ones(1), 2.0),
    },
    "b2": {"lm": LayerGate(torch.tensor([0.0, 3.0, 1.0]), 0.0)},
}


def test_what_is_written_is_read_and_not_overwritten_unless_told(tmp_path: Path) -> None:
    file = tmp_path / "router" / "gates.safetensors"
    write_gates(file, GATES, replace=False)
    found = read_gates(file)
    assert {digest: set(own) for digest, own in found.items()} == {
        digest: set(own) for digest, own in GATES.items()
    }
    for digest, own in GATES.items():
        for module, gate in own.items():
            assert torch.equal(found[digest][module].g, gate.g)
            assert found[digest][module].d == gate.d
    with pytest.raises(LibraryError, match="--replace"):
        write_gates(file, GATES, replace=False)
    write_gates(file, {"c3": GATES["b2"]}, replace=True)
    assert read_gates(file).keys() == {"c3"}


def test_without_a_file_it_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="tta router gates"):
        read_gates(tmp_path / "gates.safetensors")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("no-digest", torch.ones(3)),
        ("a1/lm", torch.ones(1)),
        ("a1/lm", torch.ones(2, 2)),
        ("a1/lm", torch.tensor([1.0, float("nan")])),
        ("a1/lm", torch.tensor([-1.0, 0.0])),
        ("a1/lm", torch.ones(3, dtype=torch.float64)),
    ],
)
def test_what_is_no_gate_is_refused_by_name(key: str, values: torch.Tensor, tmp_path: Path) -> None:
    save_file({key: values}, tmp_path / "gates.safetensors")
    with pytest.raises(LibraryError, match=f"{key} is no gate"):
        read_gates(tmp_path / "gates.safetensors")
