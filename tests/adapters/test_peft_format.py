"""PEFT folders: the same numbers as PEFT, or a refusal by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.errors import ExpertError, LibraryError
from adapters.library import Library
from adapters.peft_format import load_peft


class Toy(nn.Module):
    """Two layers of linear maps, enough for PEFT's patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 10), "down": nn.Linear(10, 6)}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["down"](layer["up"](x))
        return x


def save_adapter(folder: Path, **config: Any) -> nn.Module:
    """Train-free PEFT adapter with random B, saved by PEFT itself; the adapted model is returned."""
    torch.manual_seed(0)
    model = get_peft_model(Toy(), LoraConfig(target_modules=["up", "down"], **config))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 16, "rank_pattern": {"layers.1.up": 2}, "alpha_pattern": {"down": 3}},
    ],
)
def test_the_delta_is_pefts(tmp_path: Path, config: dict[str, Any]) -> None:
    model = save_adapter(tmp_path / "e", **config)
    expert = load_peft(tmp_path / "e")
    assert len(expert.factors) == 4
    for module, factor in expert.factors.items():
        layer: Any = model.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(factor.dense(), layer.get_delta_weight("default"))


def test_equal_content_has_an_equal_digest_and_other_content_another(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", r=4, lora_alpha=16)
    save_adapter(tmp_path / "b", r=4, lora_alpha=16)
    save_adapter(tmp_path / "c", r=4, lora_alpha=15)
    a, b, c = (load_peft(tmp_path / n).digest for n in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='none'"),
        ({"modules_to_save": ["up"], "target_modules": ["down"]}, "modules_to_save"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    options = {"r": 4, "target_modules": ["up", "down"], **config}
    get_peft_model(Toy(), LoraConfig(**options)).save_pretrained(str(tmp_path / "e"))
    with pytest.raises(ExpertError, match="'e'") as error:
        load_peft(tmp_path / "e")
    assert says in str(error.value)


def damaged(folder: Path, change: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "lora_A" in k)
    if change == "nan":
        tensors[key][0, 0] = float("nan")
    elif change == "missing":
        del tensors[key]
    elif change == "foreign":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    elif change == "rank":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    save_file(tensors, file)
    if change == "pickle":
        torch.save(tensors, folder / "adapter_model.bin")
        file.unlink()
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", "NaN"),
        ("missing", "only the B factor"),
        ("foreign", "lm_head.weight is not a LoRA factor"),
        ("rank", "has rank 4, its config says 5"),
        ("pickle", "is a pickle"),
        ("cut", "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_whole(tmp_path: Path, change: str, says: str) -> None:
    save_adapter(tmp_path / "e", r=4, lora_alpha=16)
    damaged(tmp_path / "e", change)
    with pytest.raises(ExpertError) as error:
        load_peft(tmp_path / "e")
    assert says in str(error.value)


def test_a_library_lists_its_experts_and_their_examples(tmp_path: Path) -> None:
    save_adapter(tmp_path / "sql", r=4)
    save_adapter(tmp_path / "math", r=2)
    (tmp_path / "sql" / "examples.txt").write_text("first\n\nsecond\n")
    (tmp_path / "notes").mkdir()
    library = Library.open(tmp_path)
    assert library.names == ("math", "sql")
    assert library.examples("sql") == ["first", "second"]
    assert library.examples("math") == []


@pytest.mark.parametrize("name", ["base", "auto", "a b", "a:b", "ünïcode"])
def test_a_name_that_clients_could_not_use_is_refused(tmp_path: Path, name: str) -> None:
    save_adapter(tmp_path / name, r=2)
    with pytest.raises(LibraryError, match="expert name"):
        Library.open(tmp_path)


def test_a_link_out_of_the_library_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "elsewhere", r=2)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "e").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LibraryError, match="out of the library"):
        Library.open(tmp_path / "library")


def test_an_empty_or_missing_library_says_what_is_wanted(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LibraryError, match="PEFT adapter folder"):
            Library.open(root)


def test_the_package_is_ours_and_not_the_one_of_that_name_on_the_index() -> None:
    import adapters
    import router

    root = Path(__file__).resolve().parents[2]
    assert [Path(str(m.__file__)).parent.parent for m in (adapters, router)] == [root, root]
