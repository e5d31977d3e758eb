"""Exports: PEFT and transformers load them and compute what the library says."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError, LibraryError
from adapters.files.beside_weights import copy_beside_weights
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm
from adapters.files.finetune import TaskVector
from adapters.files.peft import load_peft
from adapters.library.export import to_checkpoint, to_peft
from adapters.library.library import Library
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from tests.factories.experts import LLAMA, make_expert

ABOUT = About(source=Source("peft"))
TOKENS = torch.tensor([[1, 5, 9, 3]])


def llama(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Checkpoint:
    torch.manual_seed(seed)
    LlamaForCausalLM(LLAMA).to(dtype).save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"pickle")
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return llama(tmp_path_factory.mktemp("base"), 0)


def lora(folder: Path, base: Checkpoint, seed: int) -> LowRankDeltas:
    return LowRankDeltas(
        load_peft(make_expert(folder, base.folder, seed=seed, layers=range(2), rank=3, strength=5))
    )


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits
    return result


def test_peft_computes_the_same_with_an_exported_expert(tmp_path: Path, base: Checkpoint) -> None:
    store = VersionStore(tmp_path / "library")
    deltas = lora(tmp_path / "lora", base, 1)
    store.add("sql", deltas, LowRankForm(), ABOUT, base)
    to_peft(Library.open(store.root), "sql", tmp_path / "out" / "sql")
    assert load_peft(tmp_path / "out" / "sql").digest == deltas.expert.digest
    assert json.loads(
        (tmp_path / "out" / "sql" / "adapter_config.json").read_text(encoding="utf-8")
    )["base_model_name_or_path"] == str(base.folder)
    results = []
    for folder in (tmp_path / "lora", tmp_path / "out" / "sql"):
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base.folder), str(folder)
        )
        with torch.no_grad():
            results.append(model(TOKENS).logits)
    torch.testing.assert_close(results[1], results[0])
    assert (results[1] - logits(base.folder)).abs().max() > 1e-3


def test_transformers_computes_with_a_checkpoint_what_peft_merges(
    tmp_path: Path, base: Checkpoint
) -> None:
    deltas = lora(tmp_path / "lora", base, 1)
    to_checkpoint(base, [(1.0, deltas)], tmp_path / "merged")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder), str(tmp_path / "lora")
    )
    with torch.no_grad():
        expected = model.merge_and_unload()(TOKENS).logits
    torch.testing.assert_close(logits(tmp_path / "merged"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_is_the_sum_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    base = llama(tmp_path / "base", 0, dtype)
    tuned = TaskVector(base, llama(tmp_path / "tuned", 1, dtype))
    factors = lora(tmp_path / "lora", base, 2)
    to_checkpoint(base, [(0.5, tuned), (-2.0, factors)], tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    assert merged.dtypes == base.dtypes
    for weight in base.shapes:
        expected = base.read(weight).float() + 0.5 * (
            tuned.tuned.read(weight).float() - base.read(weight).float()
        )
        if weight in factors.shapes:
            expected += -2.0 * factors.delta(weight)
        torch.testing.assert_close(
            merged.read(weight), expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7
        )


def test_it_has_the_shards_and_the_files_of_the_base(tmp_path: Path, base: Checkpoint) -> None:
    assert len(base.shards) > 1
    to_checkpoint(base, [(1.0, lora(tmp_path / "lora", base, 1))], tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    assert {w: f.path.name for w, f in merged.files.items()} == {
        w: f.path.name for w, f in base.files.items()
    }
    index, original = (
        json.loads((c.folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        for c in (merged, base)
    )
    assert index["weight_map"] == original["weight_map"]
    assert index["metadata"]["total_size"] == original["metadata"]["total_size"]
    for file in base.folder.iterdir():
        copied = file.suffix in (".json", ".jinja") and "index" not in file.name
        assert (merged.folder / file.name).exists() == (
            copied or file.suffix == ".safetensors" or "index" in file.name
        )
        assert not copied or (merged.folder / file.name).read_bytes() == file.read_bytes()


def test_what_nothing_changes_is_the_same_bytes(tmp_path: Path, base: Checkpoint) -> None:
    to_checkpoint(base, [], tmp_path / "merged")
    assert Checkpoint.open(tmp_path / "merged").digest == base.digest


def test_a_whole_fine_tune_comes_back(tmp_path: Path, base: Checkpoint) -> None:
    tuned = llama(tmp_path / "tuned", 1)
    store = VersionStore(tmp_path / "library")
    store.add("full", TaskVector(base, tuned), DenseForm(), ABOUT, base)
    to_checkpoint(base, [(1.0, Library.open(store.root).deltas("full"))], tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(tuned.folder))


def test_nothing_is_overwritten_and_nothing_left_of_what_fails(
    tmp_path: Path, base: Checkpoint
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LibraryError, match="exists"):
        to_checkpoint(base, [], tmp_path / "there")
    with pytest.raises(LibraryError, match="could not be written"):
        to_checkpoint(base, [], base.folder / "config.json" / "below")
    deltas = lora(tmp_path / "lora", base, 1)
    with pytest.raises(ExpertError, match=r"too large for torch\.float32"):
        to_checkpoint(base, [(float("inf"), deltas)], tmp_path / "merged")
    assert {p.name for p in tmp_path.iterdir()} == {"there", "lora"}


def test_what_does_not_fit_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    narrow = LlamaConfig(**LLAMA.to_dict() | {"intermediate_size": 40})
    LlamaForCausalLM(narrow).save_pretrained(tmp_path / "other")
    other = Checkpoint.open(tmp_path / "other")
    with pytest.raises(ExpertError, match=r"the base .* has it as"):
        to_checkpoint(other, [(1.0, lora(tmp_path / "lora", base, 1))], tmp_path / "merged")


def test_a_quantised_weight_is_not_merged_into(tmp_path: Path, base: Checkpoint) -> None:
    deltas = lora(tmp_path / "lora", base, 1)
    weights = {
        weight: torch.zeros(shape, dtype=torch.int8) for weight, shape in deltas.shapes.items()
    }
    (tmp_path / "quantised").mkdir()
    save_file(weights, tmp_path / "quantised" / "model.safetensors")
    with pytest.raises(ExpertError, match=r"is torch\.int8"):
        to_checkpoint(Checkpoint.open(tmp_path / "quantised"), [(1.0, deltas)], tmp_path / "merged")


@pytest.mark.parametrize("layout", ["single", "one numbered", "several", "several without index"])
def test_transformers_loads_what_it_is_whatever_the_base_s_files(
    tmp_path: Path, layout: str
) -> None:
    torch.manual_seed(0)
    size = "40KB" if layout.startswith("several") else "1GB"
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "base", max_shard_size=size)
    index = tmp_path / "base" / "model.safetensors.index.json"
    if layout == "one numbered":
        numbered = "model-00001-of-00001.safetensors"
        file = (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / numbered)
        places = dict.fromkeys(load_file(file), numbered)
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    expected = logits(tmp_path / "base")
    if layout == "several without index":
        index.unlink()
    base = Checkpoint.open(tmp_path / "base")
    to_checkpoint(base, [], tmp_path / "merged")
    assert torch.equal(logits(tmp_path / "merged"), expected)
    assert Checkpoint.open(tmp_path / "merged").shards.keys() == base.shards.keys()


BESIDE = (
    "qwen.tiktoken",
    "vocab.bpe",
    "tokenizer.model.v3",
    "merges.txt",
    "LICENSE",
    "Open Licence (2).md",
    "modeling_own.py",
    "additional_chat_templates/tool use.jinja",
    "audio/deep/mel_filters.csv",
    "größe.txt",
)
NOT_BESIDE = (
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model.Q4_K.GGUF",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_0.pth",
    "training_args.bin",
    "trainer_state.json",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    ".gitattributes",
    ".cache/huggingface/x.json",
    "checkpoint-100/tokenizer.json",
    "onnx/model.onnx",
    "__pycache__/modeling_own.cpython-311.pyc",
    "runs/events.out.tfevents.1",
)


def test_all_that_is_no_weight_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "base"
    for name in (*BESIDE, *NOT_BESIDE):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    (source / "again").symlink_to(".")
    copy_beside_weights(source, tmp_path / "copy")
    there = {
        file.relative_to(tmp_path / "copy").as_posix(): file.read_bytes().decode()
        for file in (tmp_path / "copy").rglob("*")
        if file.is_file()
    }
    assert there == {name: name for name in BESIDE}


def test_a_link_out_of_the_base_is_not_followed_but_one_into_the_hub_s_store_is(
    tmp_path: Path,
) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot / "templates").mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "1").write_text("stored", encoding="utf-8")
    (snapshot / "templates" / "tool.jinja").symlink_to("../../../blobs/1")
    copy_beside_weights(snapshot, tmp_path / "copy")
    copied = tmp_path / "copy" / "templates" / "tool.jinja"
    assert copied.read_text(encoding="utf-8") == "stored"
    assert not copied.is_symlink()
    (tmp_path / "secret").touch()
    (snapshot / "templates" / "secret").symlink_to(tmp_path / "secret")
    with pytest.raises(LibraryError, match=r"templates/secret leads out of"):
        copy_beside_weights(snapshot, tmp_path / "other")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1e-5, 1.0])
def test_the_share_that_rounding_left_is_that_of_the_files(
    tmp_path: Path, dtype: torch.dtype, strength: float
) -> None:
    base = llama(tmp_path / "base", 0, dtype)
    deltas = lora(tmp_path / "lora", base, 2)
    left = to_checkpoint(base, [(strength, deltas)], tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    changed, lost = 0.0, 0.0
    for weight in deltas.shapes:
        change = strength * deltas.delta(weight).double()
        moved = merged.read(weight).double() - base.read(weight).double()
        changed += float(change.square().sum())
        lost += float((moved - change).square().sum())
    assert left.total == pytest.approx(1 - lost / changed, abs=1e-4)
    assert left.kept.keys() == {weight.split(".")[-2] for weight in deltas.shapes}
    assert all(0 <= share <= 1 for share in left.kept.values())
    if dtype == torch.float32:
        assert left.total > 0.999
    elif strength < 1:
        assert left.total < 0.9
