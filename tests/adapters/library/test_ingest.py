"""From folders to drafts: a LoRA goes in whole, or is refused with what slots cannot serve."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm
from adapters.library.export import to_peft
from adapters.library.ingest import (
    Draft,
    OwnerNotes,
    draft_compression,
    draft_folder,
    draft_merge,
    draft_twins,
)
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from adapters.merge.merged import merge_experts
from adapters.merge.twin import build_twins
from tests.factories.adapters import edit_config, rename_tensors, train_adapter
from tests.factories.checkpoints import make_model, save_model

ENDS = ("lm_head", "embed_tokens")


def copy_renamed(base: Checkpoint, folder: Path, rename: Callable[[str], str]) -> Checkpoint:
    """Copy a checkpoint, its weights under other names."""
    folder.mkdir()
    tensors = load_file(base.folder / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def draft(folder: Path, base: Checkpoint) -> Draft:
    return draft_folder(folder, "e", base, LowRankForm(), OwnerNotes())


def test_head_and_embedding_of_an_untied_base_go_in_exactly(tmp_path: Path) -> None:
    model = make_model()
    base = save_model(model, tmp_path / "base")
    merged = train_adapter(tmp_path / "e", model, target_modules=["q_proj", *ENDS])
    one, store = draft(tmp_path / "e", base), VersionStore(tmp_path / "library")
    store.add("e", one.deltas, one.form, one.about, base)
    deltas = Library.open(store.root).deltas("e")
    assert {"lm_head.weight", "model.embed_tokens.weight"} < deltas.shapes.keys()
    for weight in deltas.shapes:
        torch.testing.assert_close(base.read(weight) + deltas.delta(weight), merged[weight])


@pytest.mark.parametrize("module", ENDS)
def test_head_and_embedding_of_a_tied_base_are_refused(tmp_path: Path, module: str) -> None:
    model = make_model(tied=True)
    base = save_model(model, tmp_path / "base")
    train_adapter(tmp_path / "e", make_model(), target_modules=["q_proj", module])
    with pytest.raises(ExpertError, match=f"{module}.*one weight"):
        draft(tmp_path / "e", base)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("transformer.h", r"the base calls its layers transformer\.h\.N; slots serve layers\.N"),
        ("gpt_neox.block", r"the base calls its layers gpt_neox\.block\.N"),
        ("mtp.layers", "guesses further tokens"),
        ("vision_tower.layers", "text does not go through it"),
        ("model.layers.0.mlp.experts", "is of routed experts"),
    ],
)
def test_a_lora_on_what_slots_cannot_serve_is_refused_with_the_reason(
    tmp_path: Path, layers: str, says: str
) -> None:
    def rename(key: str) -> str:
        return key.replace("model.layers", layers)

    model = make_model()
    base = save_model(model, tmp_path / "base")
    train_adapter(tmp_path / "e", model)
    rename_tensors(tmp_path / "e", lambda key: key.replace("model.model.layers", f"model.{layers}"))
    with pytest.raises(ExpertError, match=says):
        draft(tmp_path / "e", copy_renamed(base, tmp_path / "other", rename))


@pytest.fixture
def judging(tmp_path: Path) -> tuple[Path, Checkpoint]:
    """An adapter that acts only from an invocation on, and its base."""
    model = make_model()
    base = save_model(model, tmp_path / "base")
    train_adapter(tmp_path / "plain" / "judge", model)
    edit_config(tmp_path / "plain" / "judge", alora_invocation_tokens=[5, 7])
    return tmp_path / "plain" / "judge", base


def test_an_invocation_goes_with_an_expert_wherever_it_goes(
    judging: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    folder, base = judging
    plain = Library.open(folder.parent)
    assert plain.invocation("judge") == plain.manifest("judge").invocation == (5, 7)

    one, store = draft(folder, base), VersionStore(tmp_path / "library")
    store.add("judge", one.deltas, one.form, one.about, base)
    small = draft_compression(Library.open(store.root), "judge", LowRankForm(rank=1), "small")
    store.add("small", small.deltas, small.form, small.about)
    added = Library.open(store.root)
    assert {name: added.invocation(name) for name in added.names} == {
        "judge": (5, 7),
        "small": (5, 7),
    }
    to_peft(added, "small", tmp_path / "out" / "small")
    assert Library.open(tmp_path / "out").invocation("small") == (5, 7)


def test_what_acts_from_an_invocation_on_is_not_merged_into_weights(
    judging: tuple[Path, Checkpoint],
) -> None:
    folder, base = judging
    with pytest.raises(ExpertError, match="'judge' acts only from its invocation on"):
        draft_folder(folder, "judge", base, DenseForm(), OwnerNotes())
    library = Library.open(folder.parent)
    deltas = library.deltas("judge")
    twins = build_twins({"judge": deltas}, 0.3)
    with pytest.raises(LibraryError, match="judge: made to act only from an invocation"):
        draft_twins(library, "t", twins, LowRankForm(rank=1), 0.3)
    with pytest.raises(LibraryError, match="judge: made to act only from an invocation"):
        draft_merge(
            library,
            "both",
            merge_experts("task_arithmetic", [deltas]),
            LowRankForm(),
            OwnerNotes(),
            method="task_arithmetic",
            options={},
            parents=["judge"],
            base=None,
        )
