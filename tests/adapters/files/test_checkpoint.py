"""Checkpoints: transformers' own folders, whole or sharded, or a refusal."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import AdapterError, ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint, find_tensor_files
from tests.factories.checkpoints import INDEX, SINGLE, make_model, save_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_every_weight_is_the_models(tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    model = make_model(dtype=dtype)
    checkpoint = save_model(model, tmp_path, shard)
    state = model.state_dict()
    assert checkpoint.shapes == {name: tuple(value.shape) for name, value in state.items()}
    assert set(checkpoint.dtypes.values()) == {dtype}
    assert all(checkpoint.read(name).equal(value) for name, value in state.items())
    assert checkpoint.shards == {
        path.name: path.stat().st_size for path in tmp_path.glob("*.safetensors")
    }
    assert (len(checkpoint.shards) > 1) == (shard == "5KB")


def test_the_digest_is_of_the_content_and_not_of_its_sharding(tmp_path: Path) -> None:
    model = make_model()
    digests = [save_model(model, tmp_path / shard, shard).digest for shard in ("1GB", "5KB", "9KB")]
    assert len(set(digests)) == 1
    assert save_model(make_model(1), tmp_path / "other").digest != digests[0]
    assert save_model(model.to(torch.bfloat16), tmp_path / "short").digest != digests[0]


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "value"])
def test_the_digest_sees_every_kind_of_change(tmp_path: Path, change: str) -> None:
    changed = {
        "name": {"y": torch.ones(2, 4)},
        "shape": {"x": torch.ones(4, 2)},
        "dtype": {"x": torch.ones(2, 4).view(torch.int32)},
        "value": {"x": torch.ones(2, 4).index_fill(0, torch.tensor([1]), 2)},
    }
    digests = []
    for number, tensors in enumerate(({"x": torch.ones(2, 4)}, changed[change])):
        (tmp_path / str(number)).mkdir()
        save_file(tensors, tmp_path / str(number) / SINGLE)
        digests.append(Checkpoint.open(tmp_path / str(number)).digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("second", [SINGLE, "model-00001-of-00001.safetensors"])
def test_two_sets_of_the_same_weights_are_refused(
    tmp_path: Path, second: str, *, listed: bool
) -> None:
    model = make_model()
    save_model(model, tmp_path, "5KB" if listed else "1GB")
    if second == SINGLE and not listed:
        (tmp_path / SINGLE).rename(tmp_path / "model-00001-of-00001.safetensors")
    save_file({name: value + 1 for name, value in model.state_dict().items()}, tmp_path / second)
    with pytest.raises(ExpertError, match="keep one set of weights"):
        Checkpoint.open(tmp_path)


def test_files_of_other_names_beside_the_weights_are_left_alone(tmp_path: Path) -> None:
    checkpoint = save_model(make_model(), tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "optimizer.safetensors")
    assert Checkpoint.open(tmp_path).shapes == checkpoint.shapes


def test_numbered_files_without_an_index_must_be_all_there(tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path, "5KB")
    (tmp_path / INDEX).unlink()
    assert find_tensor_files(tmp_path, "model").keys() == model.state_dict().keys()
    min(tmp_path.glob("model-*")).unlink()
    with pytest.raises(ExpertError, match="has the shards model-00002-of-"):
        find_tensor_files(tmp_path, "model")


def test_a_hub_snapshot_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    save_model(make_model(), blobs, "5KB")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert Checkpoint.open(snapshot).digest == Checkpoint.open(blobs).digest


def damaged(folder: Path, change: str) -> None:
    places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    weight, file = sorted(places.items())[0]
    if change == "missing shard":
        (folder / file).unlink()
    elif change == "outside":
        shutil.copy(folder / file, folder.parent / file)
        places = {w: f"../{f}" if f == file else f for w, f in places.items()}
    elif change == "absolute":
        places = {w: str(folder / f) for w, f in places.items()}
    elif change == "link":
        shutil.move(folder / file, folder.parent / file)
        (folder / file).symlink_to(folder.parent / file)
    elif change == "lost":
        places["model.more.weight"] = file
    elif change == "unlisted":
        del places[weight]
    elif change == "wrong place":
        places[weight] = next(f for f in places.values() if f != file)
    elif change == "twice":
        other = next(f for f in places.values() if f != file)
        save_file(load_file(folder / other) | {weight: torch.ones(1)}, folder / other)
    elif change == "no strings":
        places[weight] = 1
    (folder / INDEX).write_text(
        "{"
        if change == "no json"
        else json.dumps([] if change == "list" else {"weight_map": places}),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("missing shard", ExpertError, "No such file"),
        ("outside", LibraryError, "letters, digits"),
        ("absolute", LibraryError, "letters, digits"),
        ("link", LibraryError, "leads out"),
        ("lost", ExpertError, "disagree about model.more.weight"),
        ("unlisted", ExpertError, "disagree about lm_head.weight"),
        ("wrong place", ExpertError, "disagree about lm_head.weight"),
        ("twice", ExpertError, "lm_head.weight is in"),
        ("no strings", ExpertError, "must name a file"),
        ("no json", ExpertError, "is no index"),
        ("list", ExpertError, "is no index"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    tmp_path: Path, change: str, kind: type[AdapterError], says: str
) -> None:
    save_model(make_model(), tmp_path / "model", "5KB")
    damaged(tmp_path / "model", change)
    with pytest.raises(kind) as error:
        Checkpoint.open(tmp_path / "model")
    assert says in str(error.value)


def test_pickles_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=r"has no model\.safetensors$"):
        Checkpoint.open(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExpertError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        Checkpoint.open(tmp_path)
