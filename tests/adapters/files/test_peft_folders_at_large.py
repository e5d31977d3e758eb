"""PEFT folders of any kind: the exact change, or a refusal in one line; never another error."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.deltas import Deltas
from adapters.errors import AdapterError
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.files.peft import load_peft, open_adapter
from adapters.files.peft_config import read_settings
from tests.factories.adapters import edit_config, train_adapter
from tests.factories.checkpoints import make_model, save_model

# PEFT warns of some of what these tests ask it for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
P = "base_model.model.model.layers.0.self_attn.q_proj"
OPTIONS = (
    *("peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern"),
    *("alpha_pattern", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("use_dora", "use_rslora", "lora_bias", "init_lora_weights", "task_type", "kasa_config"),
    *(
        "target_parameters",
        "fan_in_fan_out",
        "base_model_name_or_path",
        "of_tomorrow",
        "of\ntomorrow",
    ),
)
JSON: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["q_proj", "LORA", "none", "all", ".*", "(", "(?i)q_proj", "pissa", "é"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *("lm_head.weight", f"{P}.lora_A.weight", f"{P}.lora_B.default.weight", f"{P}.lora_A"),
        *(f"{P}.lora_B.bias", f"{P}.lora_magnitude_vector", f"{P}.base_layer.weight", "weight"),
        *("base_model.model.model.embed_tokens.lora_embedding_A", f"module.{P}.lora_A.weight"),
        *("base_model.model.model.norm.modules_to_save.default.weight", f"{P}.bias", "..", "é"),
    ]
)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn]
)
SHAPES = st.lists(st.integers(0, 17), max_size=3).map(tuple)
KINDS = st.sampled_from(["plain", "dora", "whole", "vocabulary"])
DAMAGE = st.sampled_from(["", "cut", "link", "no config", "no json", "folder", "pickle", "noise"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_model(make_model(), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sound adapters, and what PEFT merges of each."""
    root = tmp_path_factory.mktemp("made")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "dora": {"use_dora": True},
        "whole": {"modules_to_save": ["norm"]},
        "vocabulary": {"target_modules": ["lm_head", "embed_tokens"]},
    }
    for kind, config in kinds.items():
        merged = train_adapter(root / kind, make_model(), **config)
        save_file({name: t.clone() for name, t in merged.items()}, root / f"{kind}.safetensors")
    return root


def refusal(error: AdapterError) -> str:
    text = str(error)
    assert text
    assert "\n" not in text.strip()
    return text


def read_all(folder: Path, base: Checkpoint) -> Deltas | None:
    """Read a folder in every way that there is; return what it changes, None where refused."""
    for read in (lambda: read_settings(folder, "e"), lambda: load_peft(folder)):
        try:
            read()
        except AdapterError as error:
            refusal(error)
    try:
        deltas = open_adapter(folder, base)
        for weight in deltas.shapes:
            assert deltas.delta(weight).shape == base.shapes[weight]
    except AdapterError as error:
        refusal(error)
        return None
    return deltas


@given(kind=KINDS, options=st.dictionaries(st.sampled_from(OPTIONS), JSON, max_size=2))
def test_any_configuration_is_read_or_refused(
    base: Checkpoint, made: Path, kind: str, options: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(made / kind, Path(place) / "e"))
        edit_config(folder, **options)
        read_all(folder, base)


@given(kind=KINDS, key=KEYS, dtype=DTYPES, shape=SHAPES, value=st.sampled_from([0.0, 1.0, 1e38]))
def test_any_further_tensor_is_refused_or_the_change_is_the_same(  # noqa: PLR0913 - what is drawn
    base: Checkpoint,
    made: Path,
    kind: str,
    key: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    value: float,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(made / kind, Path(place) / "e"))
        tensors = load_file(folder / WEIGHTS_FILE)
        is_new = key not in tensors
        save_file(tensors | {key: torch.full(shape, value).to(dtype)}, folder / WEIGHTS_FILE)
        deltas = read_all(folder, base)
        # A further tensor is never left out in silence.
        assert deltas is None or not is_new or kind == "whole"


@given(kind=KINDS, damage=DAMAGE, at=st.floats(0, 1), noise=st.binary(min_size=1, max_size=9))
def test_a_damaged_folder_is_exact_or_refused(  # noqa: PLR0913 - what is drawn
    base: Checkpoint, made: Path, kind: str, damage: str, at: float, noise: bytes
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(made / kind, Path(place) / "e"))
        spoil(folder, damage, at, noise)
        deltas = read_all(folder, base)
        if deltas is not None and damage != "noise":
            assert_merges(deltas, base, load_file(made / f"{kind}.safetensors"))


def spoil(folder: Path, damage: str, at: float, noise: bytes) -> None:
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    content = weights.read_bytes()
    place = int(at * len(content))
    if damage == "cut":
        weights.write_bytes(content[:place])
    elif damage == "noise":
        weights.write_bytes(content[:place] + noise + content[place + len(noise) :])
    elif damage == "no config":
        config.unlink()
    elif damage == "no json":
        config.write_bytes(config.read_bytes()[: int(at * config.stat().st_size)] + noise)
    elif damage == "link":
        weights.rename(folder.parent / "elsewhere")
        weights.symlink_to(folder.parent / ("elsewhere" if at < 0.5 else "nowhere"))
    elif damage == "folder":
        weights.unlink()
        weights.mkdir()
    elif damage == "pickle":
        weights.rename(folder / "adapter_model.bin")


def assert_merges(deltas: Deltas, base: Checkpoint, merged: dict[str, Tensor]) -> None:
    for weight, wanted in merged.items():
        change = deltas.delta(weight) if weight in deltas.shapes else 0
        torch.testing.assert_close(base.read(weight) + change, wanted, rtol=1e-5, atol=1e-6)
