"""Names that people's tools write: the same numbers under any, or a refusal that says which."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.files.peft import load_peft
from adapters.files.peft_names import TensorKey
from tests.factories.adapters import edit_config, rename_tensors, train_adapter
from tests.factories.checkpoints import make_model, save_model

P = "base_model.model."
# PEFT warns of some of what these tests ask it for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_model(make_model(), tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    targets = ["q_proj", "down_proj", "lm_head", "embed_tokens"]
    train_adapter(tmp_path / "e", make_model(), target_modules=targets)
    return tmp_path / "e"


def with_adapter_name(key: str) -> str:
    if "lora_embedding" in key:
        return f"{key}.sql"
    return key.replace("lora_A.", "lora_A.sql.").replace("lora_B.", "lora_B.sql.")


@pytest.mark.parametrize(
    "rename",
    [
        with_adapter_name,
        lambda key: key.removeprefix(P),
        lambda key: P + key,
        lambda key: "_orig_mod." + key,
        lambda key: "module." + key,
        lambda key: key.replace(P, P + "_orig_mod."),
        lambda key: key.replace(".layers.", ".layers._fsdp_wrapped_module."),
        lambda key: key.replace(".lora_", "._checkpoint_wrapped_module.module.lora_"),
        lambda key: key.replace(P + "model.layers", P + "layers"),
        lambda key: key.replace(P + "model.", P + "model.model."),
        lambda key: key.replace(P + "model.", P + "model.language_model."),
        lambda key: key.replace(P + "model.", P + "language_model.model."),
        lambda key: key.replace(P + "lm_head", P + "language_model.lm_head"),
    ],
)
def test_one_adapter_under_any_name_is_one_expert(
    adapter: Path, base: Checkpoint, rename: Callable[[str], str]
) -> None:
    wanted = load_peft(adapter, base=base)
    rename_tensors(adapter, rename)
    assert load_peft(adapter, base=base).digest == wanted.digest


def disk_names(folder: Path, base: Checkpoint, rename: Callable[[str], str]) -> Checkpoint:
    """Return the base with other names of its weights."""
    shutil.copytree(base.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(key): t for key, t in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("on_disk", "in_transformers"),
    [
        # Gemma-3, Mistral-3 and LLaVA; Qwen2.5-VL; InternVL; MiniCPM.
        ("language_model.model.", "model.language_model."),
        ("model.", "model.language_model."),
        ("model.language_model.", "language_model.model."),
        ("llm.model.", "model.language_model."),
        ("thinker.model.", "model."),
    ],
)
def test_a_language_model_is_found_wherever_files_keep_it(
    tmp_path: Path, adapter: Path, base: Checkpoint, on_disk: str, in_transformers: str
) -> None:
    def rename(key: str) -> str:
        return key.replace("model.", on_disk, 1) if key.startswith("model.") else key

    other = disk_names(tmp_path / "b", base, rename)
    rename_tensors(adapter, lambda key: key.replace(f"{P}model.", f"{P}{in_transformers}"))
    found = load_peft(adapter, base=other)
    rename_tensors(adapter, lambda key: key.replace(f"{P}{in_transformers}", f"{P}model."))
    for module, factor in load_peft(adapter, base=base).factors.items():
        assert found.factors[rename(f"{module}.weight").removesuffix(".weight")].b.equal(factor.b)


def test_a_name_that_two_weights_could_have_is_refused(
    tmp_path: Path, adapter: Path, base: Checkpoint
) -> None:
    both = disk_names(tmp_path / "b", base, lambda key: f"language_model.{key}")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    more = {f"llm.{key.partition('.')[2]}": value.clone() for key, value in tensors.items()}
    save_file(tensors | more, both.folder / "model.safetensors")
    with pytest.raises(ExpertError, match="can be any of"):
        load_peft(adapter, base=Checkpoint.open(both.folder))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("layers.1", "layers.7", "no such weight as model.layers.7"),
        ("q_proj", "k_proj", r"is to change as \(16, 16\); the base .* has .* as \(8, 16\)"),
    ],
)
def test_what_the_base_does_not_have_is_refused(
    adapter: Path, base: Checkpoint, old: str, new: str, says: str
) -> None:
    targets = ["q_proj", "down_proj", "lm_head", "embed_tokens", new]
    edit_config(adapter, target_modules=targets)
    rename_tensors(adapter, lambda key: key.replace(old, new))
    with pytest.raises(ExpertError, match=says):
        load_peft(adapter, base=base)


def test_two_adapters_in_one_file_are_refused(adapter: Path) -> None:
    rename_tensors(adapter, lambda key: with_adapter_name(key) if ".1." in key else key)
    with pytest.raises(ExpertError, match="are of two adapters"):
        load_peft(adapter)


def test_two_names_of_one_tensor_are_refused(adapter: Path) -> None:
    file = adapter / WEIGHTS_FILE
    tensors = load_file(file)
    more = {f"module.{key}": value.clone() for key, value in tensors.items()}
    save_file(tensors | more, file)
    with pytest.raises(ExpertError, match="are one; remove one"):
        load_peft(adapter)


def test_an_adapter_in_a_subfolder_of_a_hub_snapshot_is_read(
    tmp_path: Path, adapter: Path, base: Checkpoint
) -> None:
    wanted = load_peft(adapter, base=base).digest
    blobs = tmp_path / "models--org--many" / "blobs"
    blobs.mkdir(parents=True)
    folder = blobs.parent / "snapshots" / "abc" / "deep" / "sql"
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(adapter.iterdir())):
        shutil.move(file, blobs / str(number))
        (folder / file.name).symlink_to(os.path.relpath(blobs / str(number), folder))
    assert load_peft(folder, base=base).digest == wanted


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (f"{P}a.q.lora_A.weight", ("A", "a.q", "")),
        (f"{P}a.q.lora_B.x.weight", ("B", "a.q", "x")),
        (f"{P}a.q.lora_B.x.bias", ("B bias", "a.q", "x")),
        ("e.lora_embedding_A", ("embedding A", "e", "")),
        ("e.lora_embedding_B.default", ("embedding B", "e", "default")),
        ("q.lora_magnitude_vector", ("magnitude", "q", "")),
        ("q.lora_magnitude_vector.weight", ("magnitude", "q", "")),
        ("q.lora_magnitude_vector.default.weight", ("magnitude", "q", "default")),
        ("lm_head.base_layer.weight", ("original", "lm_head.weight", "")),
        ("lm_head.original_module.weight", ("original", "lm_head.weight", "")),
        ("lm_head.modules_to_save.default.weight", ("copy", "lm_head.weight", "default")),
        ("lm_head.modules_to_save.weight", ("copy", "lm_head.weight", "")),
        ("q.bias", ("copy", "q.bias", "")),
        *(
            (key, None)
            for key in (
                *(
                    "",
                    "weight",
                    "lora_A.weight",
                    "q.lora_A",
                    "q.lora_A.bias",
                    "q.lora_A.x.y.weight",
                ),
                *("q.base_layer.lora_A.weight", "q.lora_embedding_A.x.weight", "q.lora_E"),
                *("q.lora_down.weight", "q.alpha", "base_layer.weight", "q.weight_scale"),
            )
        ),
    ],
)
def test_a_name_says_what_a_tensor_is(key: str, wanted: tuple[str, str, str] | None) -> None:
    assert TensorKey.parse(key) == wanted


def test_without_a_base_the_folders_own_names_stay(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    kept = {key: value for key, value in tensors.items() if "base_layer" not in key}
    save_file(kept, adapter / WEIGHTS_FILE)
    rename_tensors(adapter, lambda key: key.replace(f"{P}model.", f"{P}model.language_model."))
    modules = load_peft(adapter).factors
    assert "model.language_model.layers.0.self_attn.q_proj" in modules
    assert torch.equal(
        modules["model.language_model.embed_tokens"].b,
        3 * kept[f"{P}model.embed_tokens.lora_embedding_A"].t(),
    )
    assert json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["lora_alpha"] == 6
