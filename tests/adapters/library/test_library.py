"""A library of PEFT folders and added experts: what slots can serve, and all of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm, OneBitForm
from adapters.library.library import Library, open_expert_folder, read_examples
from adapters.library.manifest import About
from adapters.library.versions import VersionStore
from tests.factories.experts import make_narrow_expert
from tests.factories.versions import ABOUT, MODULE, SHAPES, make_checkpoint, make_expert_deltas


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "base", 0)


@pytest.fixture
def root(tmp_path: Path, base: Checkpoint) -> Path:
    """A PEFT folder, a low-rank, a dense and a removed expert, and a killed process's rest."""
    store = VersionStore(tmp_path / "library")
    source, deltas = open_expert_folder(make_checkpoint(tmp_path / "tuned", 1).folder, base)
    store.add("low", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    store.add("full", deltas, DenseForm(), About(source=source), base)
    store.add("gone", make_expert_deltas(2), LowRankForm(), ABOUT)
    store.remove("gone")
    folder = make_narrow_expert(store.root / "plain", MODULE, (6, 4))
    (folder / "examples.txt").write_text("first\n\nsecond\n")
    (store.root / ".staging-x" / "version").mkdir(parents=True)
    return store.root


def test_it_serves_peft_folders_and_low_rank_versions(root: Path) -> None:
    library = Library.open(root)
    assert library.names == ("low", "plain")
    assert list(library.manifests) == ["full", "low", "plain"]
    assert [e.name for e in library] == ["low", "plain"]
    assert library.digests == {
        "low": make_expert_deltas(1).expert.digest,
        "plain": library.expert("plain").digest,
    }
    assert library.examples("low") == ["one", "two"]
    assert library.examples("plain") == ["first", "second"]
    assert library.examples("full") == []
    assert library.base_digest == library.manifests["low"].base


def test_a_peft_folder_has_a_manifest_of_its_own(root: Path) -> None:
    manifest = Library.open(root).manifests["plain"]
    assert (manifest.version, manifest.form, manifest.source.kind) == (0, "low_rank", "peft")
    assert manifest.report.ranks == {MODULE: 1}
    assert manifest.digest == Library.open(root).expert("plain").digest
    assert manifest.examples == ("first", "second")


def test_deltas_of_every_form_can_be_read(root: Path, base: Checkpoint, tmp_path: Path) -> None:
    library = Library.open(root)
    weight = f"{MODULE}.weight"
    torch.testing.assert_close(library.deltas("plain").delta(weight), torch.ones(6, 4))
    torch.testing.assert_close(
        library.deltas("low").delta(weight), make_expert_deltas(1).delta(weight)
    )
    tuned = Checkpoint.open(tmp_path / "tuned")
    for name in SHAPES:
        assert torch.equal(library.deltas("full").delta(name), tuned.read(name) - base.read(name))
    assert (
        library.manifest("full") == library.manifests["full"] == VersionStore(root).current("full")
    )


def test_what_slots_cannot_serve_says_what_to_do(root: Path) -> None:
    library = Library.open(root)
    with pytest.raises(ExpertError, match="tta experts compress full --rank R"):
        library.expert("full")
    for use in (library.expert, library.deltas, library.manifest, library.verify):
        with pytest.raises(ExpertError, match="holds no expert 'gone'; it holds: full, low, plain"):
            use("gone")


def test_the_current_version_is_served_whatever_its_form(root: Path) -> None:
    library = Library.open(root)
    VersionStore(root).add("full", library.deltas("full"), LowRankForm(rank=4), ABOUT)
    VersionStore(root).add("low", library.deltas("low"), OneBitForm(), ABOUT)
    assert Library.open(root).names == ("full", "plain")
    assert library.expert("low").digest == make_expert_deltas(1).expert.digest, (
        "an open library keeps the version that it found"
    )


def test_a_changed_expert_is_not_served(root: Path) -> None:
    library = Library.open(root)
    factor = make_expert_deltas(7).expert.factors[MODULE]
    save_file(
        {f"{MODULE}.a": factor.a, f"{MODULE}.b": factor.b},
        root / "low" / "v0001" / "weights-00001.safetensors",
    )
    for use in (library.expert, library.verify):
        with pytest.raises(ExpertError, match="not what was added"):
            use("low")
    library.verify("full")
    library.verify("plain")


def test_a_library_of_dense_experts_serves_none(tmp_path: Path, base: Checkpoint) -> None:
    VersionStore(tmp_path / "library").add("low", make_expert_deltas(1), OneBitForm(), ABOUT, base)
    library = Library.open(tmp_path / "library")
    assert library.names == ()
    assert list(library.manifests) == ["low"]


def test_a_folder_cannot_be_both(root: Path) -> None:
    make_narrow_expert(root / "other", MODULE, (6, 4))
    (root / "other" / "adapter_config.json").rename(root / "low" / "adapter_config.json")
    with pytest.raises(LibraryError, match="is a PEFT folder and has no versions"):
        Library.open(root)


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "examples.txt", "adapter_config.json"]
)
def test_a_link_out_of_a_peft_folder_is_refused(root: Path, tmp_path: Path, file: str) -> None:
    (root / "plain" / file).rename(tmp_path / "secret")
    (root / "plain" / file).symlink_to(tmp_path / "secret")
    with pytest.raises(LibraryError, match="out of the library"):
        Library.open(root)


def test_without_versions_the_base_is_not_known(tmp_path: Path) -> None:
    make_narrow_expert(tmp_path / "library" / "plain", MODULE, (6, 4))
    assert Library.open(tmp_path / "library").base_digest is None


def test_a_library_whose_experts_are_all_gone_holds_nothing(
    tmp_path: Path, base: Checkpoint
) -> None:
    store = VersionStore(tmp_path / "library")
    store.add("low", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    store.remove("low", purge=True)
    with pytest.raises(LibraryError, match="nothing that was added"):
        Library.open(store.root)


def test_a_folder_from_outside_is_told_by_its_files(tmp_path: Path, base: Checkpoint) -> None:
    lora = make_narrow_expert(tmp_path / "lora", MODULE, (6, 4))
    source, deltas = open_expert_folder(lora, base)
    assert (source.kind, source.path) == ("peft", str(lora))
    torch.testing.assert_close(deltas.delta(f"{MODULE}.weight"), torch.ones(6, 4))
    source, _ = open_expert_folder(base.folder, base)
    assert source.kind == "finetune"
    with pytest.raises(ExpertError, match=r"has no model\.safetensors"):
        open_expert_folder(tmp_path, base)


def test_examples_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(" one \n\n\ttwo\n")
    assert read_examples(tmp_path / "prompts.txt") == ["one", "two"]
    (tmp_path / "prompts.txt").write_bytes(b"\xff")
    for file in ("prompts.txt", "nowhere.txt"):
        with pytest.raises(LibraryError, match=f"{file} cannot be read"):
            read_examples(tmp_path / file)
