"""The file of pinned requests: written whole, read back, and left alone where it is no use."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import LibraryError
from tta_serve.serving.routing.pinned_file import PinnedContent, load_pinned, save_pinned
from tta_serve.serving.routing.pinned_sample import PinnedRows

CONTROLS = torch.rand(2, 2, 3)
ROWS = PinnedRows(torch.tensor([5, 7]), torch.tensor([1, 2]), torch.rand(2, 2, 3))
CONTENT = PinnedContent(b"0123456789abcdef", CONTROLS, {"a" * 64: ROWS})


def test_what_was_written_is_read_and_nobody_else_may(tmp_path: Path) -> None:
    file = tmp_path / "router" / "pinned.safetensors"
    assert load_pinned(file) is None
    save_pinned(file, CONTENT)
    found = load_pinned(file)
    assert found is not None
    assert (found.salt, set(found.rows)) == (CONTENT.salt, {"a" * 64})
    assert all(map(torch.equal, vars(found.rows["a" * 64]).values(), vars(ROWS).values()))
    assert file.stat().st_mode & 0o077 == 0
    save_pinned(file, PinnedContent(CONTENT.salt, CONTROLS, {}))
    again = load_pinned(file)
    assert again is not None
    assert again.rows == {}
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_base_that_reads_otherwise_is_told() -> None:
    assert CONTENT.is_of(CONTROLS * (1 + 1e-6))
    assert not CONTENT.is_of(CONTROLS * 1.1)
    assert not CONTENT.is_of(torch.rand(2, 2, 4))


@pytest.mark.parametrize("spoil", ["cut", "text", "missing", "narrow", "salt", "nan"])
def test_what_cannot_be_used_is_said_and_left(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pinned.safetensors"
    save_pinned(file, CONTENT)
    tensors = load_file(file)
    name = f"{'a' * 64}.features"
    if spoil == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif spoil == "text":
        file.write_text("no tensors", encoding="utf-8")
    else:
        tensors |= {
            "missing": {},
            "narrow": {name: torch.rand(2, 2, 1)},
            "salt": {"salt": tensors["salt"][:3]},
            "nan": {name: torch.full((2, 2, 3), torch.nan)},
        }[spoil]
        if spoil == "missing":
            del tensors[f"{'a' * 64}.keys"]
        save_file(tensors, file)
    assert load_pinned(file) is None
    assert "is of no use" in caplog.text


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "router").write_text("no folder", encoding="utf-8")
    with pytest.raises(LibraryError, match="could not be written"):
        save_pinned(tmp_path / "router" / "pinned.safetensors", CONTENT)
