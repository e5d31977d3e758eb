"""Fine-tunes of any kind: added exactly, or refused in one line, and the library stays sound."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import AdapterError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, Form, LowRankForm, OneBitForm
from adapters.library.ingest import OwnerNotes, draft_folder
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from tests.factories.checkpoints import make_model, save_model

FILE = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
FORMS = st.sampled_from([LowRankForm(rank=2), LowRankForm(energy=0.9), DenseForm(), OneBitForm()])
WEIGHTS = st.sampled_from([UP, "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn]
)
NAMES = st.sampled_from(
    [
        *(f"_orig_mod.{UP}", f"language_model.{UP}", f"model.{UP}", "v_head.weight", "", "..", "é"),
        *("model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.2.mlp.up_proj.weight"),
        *("model.layers.1.mlp.up_proj.bias", "vision_tower.layers.0.weight", "x\ny"),
    ]
)
SHAPES = st.lists(st.integers(0, 25), max_size=3).map(tuple)
KEYS = st.sampled_from(
    [
        *("rope_parameters", "rope_theta", "rms_norm_eps", "hidden_act", "num_hidden_layers"),
        *("tie_word_embeddings", "model_type", "vocab_size", "head_dim", "note\nof mine"),
    ]
)
JSON: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({})
)
DAMAGE = st.sampled_from(
    ["cut", "empty", "link", "folder", "no config", "no json", "a list", "twice", "noise"]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base and a fine-tune of it."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("base", "tuned")):
        save_model(make_model(seed), root / name)
    return root


def add_changed(made: Path, form: Form, change: Callable[[Path], None]) -> None:
    """Add a fine-tune that was changed: the delta is exact, or the library is as it was."""
    base = Checkpoint.open(made / "base")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(made / "tuned", Path(place) / "tuned"))
        change(folder)
        store = VersionStore(Path(place) / "library")
        sound = draft_folder(made / "tuned", "sound", base, DenseForm(), OwnerNotes())
        store.add(sound.name, sound.deltas, sound.form, sound.about, base)
        try:
            draft = draft_folder(folder, "e", base, form, OwnerNotes())
            store.add(draft.name, draft.deltas, draft.form, draft.about, base)
        except AdapterError as error:
            check_refusal(error)
            assert Library.open(store.root).names == ("sound",)
            return
        library = Library.open(store.root)
        library.verify("e")
        if isinstance(form, DenseForm):
            assert_exact(base, Checkpoint.open(folder), library.deltas("e").delta)


def check_refusal(error: AdapterError) -> None:
    assert str(error)
    assert "\n" not in str(error).strip()


def assert_exact(base: Checkpoint, tuned: Checkpoint, delta: Callable[[str], Tensor]) -> None:
    """What was kept of a weight is what the fine-tune has beyond the base."""
    for weight in base.files.keys() & tuned.files.keys():
        change = tuned.read(weight).float() - base.read(weight).float()
        if change.any():
            assert delta(weight).equal(change)


@given(form=FORMS, weight=WEIGHTS, dtype=DTYPES, shape=st.none() | SHAPES)
def test_a_weight_of_any_dtype_and_shape(
    made: Path, form: Form, weight: str, dtype: torch.dtype, shape: tuple[int, ...] | None
) -> None:
    def change(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        value = tensors[weight] if shape is None else torch.ones(shape)
        save_file(tensors | {weight: value.to(dtype)}, folder / FILE)

    add_changed(made, form, change)


@given(form=FORMS, name=NAMES, moved=st.booleans(), shape=SHAPES)
def test_a_weight_of_any_name(
    made: Path, form: Form, name: str, shape: tuple[int, ...], *, moved: bool
) -> None:
    def change(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        value = tensors.pop(UP) if moved else torch.ones(shape)
        save_file(tensors | {name: value}, folder / FILE)

    add_changed(made, form, change)


@given(form=FORMS, values=st.dictionaries(KEYS, JSON, max_size=2))
def test_any_configuration(made: Path, form: Form, values: dict[str, Any]) -> None:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        content = json.loads(file.read_text(encoding="utf-8")) | values
        file.write_text(json.dumps(content), encoding="utf-8")

    add_changed(made, form, change)


@given(form=FORMS, damage=DAMAGE, size=st.integers(0, 4000))
def test_any_damage(made: Path, form: Form, damage: str, size: int) -> None:
    def change(folder: Path) -> None:
        file, config = folder / FILE, folder / "config.json"
        content = file.read_bytes()
        if damage == "cut":
            file.write_bytes(content[:size])
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "link":
            file.rename(folder.parent / FILE)
            file.symlink_to(folder.parent / FILE)
        elif damage == "folder":
            file.unlink()
            file.mkdir()
        elif damage == "twice":
            shutil.copy(file, folder / "model-00001-of-00001.safetensors")
        elif damage == "noise":
            file.write_bytes(content[:size] + b"\xff" + content[size + 1 :])
        elif damage == "no config":
            config.unlink()
        else:
            config.write_text("{" if damage == "no json" else "[]", encoding="utf-8")

    add_changed(made, form, change)
