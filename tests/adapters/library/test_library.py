"""A library of PEFT folders and added experts: what slots can serve, and all of it."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import AdapterError, ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm, OneBitForm
from adapters.files.peft import load_peft
from adapters.library.library import Library, open_expert_folder, read_examples
from adapters.library.manifest import About, Source
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
    (folder / "examples.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    (store.root / ".staging-x" / "version").mkdir(parents=True)
    return store.root


def test_it_holds_peft_folders_and_versions_of_any_form(root: Path) -> None:
    library = Library.open(root)
    assert library.names == ("full", "low", "plain")
    assert library.low_rank_names == ("low", "plain")
    assert [library.form(name) for name in library.names] == ["dense", "low_rank", "low_rank"]
    assert list(library.manifests) == ["full", "low", "plain"]
    assert [e.name for e in library] == ["low", "plain"]
    assert library.digests == {
        "full": library.managed["full"].digest,
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


def test_what_is_not_low_rank_says_what_to_do(root: Path) -> None:
    library = Library.open(root)
    with pytest.raises(ExpertError, match="tta experts compress full --rank R"):
        library.expert("full")
    for use in (library.expert, library.deltas, library.manifest, library.verify):
        with pytest.raises(ExpertError, match="holds no expert 'gone'; it holds: full, low, plain"):
            use("gone")


def test_the_current_version_counts_whatever_its_form(root: Path) -> None:
    library = Library.open(root)
    VersionStore(root).add("full", library.deltas("full"), LowRankForm(rank=4), ABOUT)
    VersionStore(root).add("low", library.deltas("low"), OneBitForm(), ABOUT)
    assert Library.open(root).low_rank_names == ("full", "plain")
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


def test_a_library_may_hold_no_low_rank_expert(tmp_path: Path, base: Checkpoint) -> None:
    VersionStore(tmp_path / "library").add("low", make_expert_deltas(1), OneBitForm(), ABOUT, base)
    library = Library.open(tmp_path / "library")
    assert (library.names, library.low_rank_names) == (("low",), ())
    assert list(library.read_experts()[0]) == ["low"]
    with pytest.raises(ExpertError, match="form one_bit, and low-rank factors are wanted"):
        library.expert("low")


def test_a_folder_cannot_be_both(root: Path) -> None:
    make_narrow_expert(root / "other", MODULE, (6, 4))
    (root / "other" / "adapter_config.json").rename(root / "low" / "adapter_config.json")
    assert "is a PEFT folder and has no versions" in Library.open(root).problems["low"]


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "examples.txt", "adapter_config.json"]
)
def test_a_link_out_of_a_peft_folder_is_refused(root: Path, tmp_path: Path, file: str) -> None:
    (root / "plain" / file).rename(tmp_path / "secret")
    (root / "plain" / file).symlink_to(tmp_path / "secret")
    library = Library.open(root)
    assert library.names == ("full", "low")
    with pytest.raises(LibraryError, match="out of the library"):
        library.expert("plain")


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
    with pytest.raises(LibraryError, match="there are adapters in: lora/"):
        open_expert_folder(tmp_path, base)


def leave_a_broken_link(root: Path) -> None:
    (root / "bad").symlink_to("nowhere")


def leave_half_of_an_adapter(root: Path) -> None:
    make_narrow_expert(root / "bad", MODULE, (6, 4))
    (root / "bad" / "adapter_config.json").unlink()


def leave_the_other_half(root: Path) -> None:
    make_narrow_expert(root / "bad", MODULE, (6, 4))
    (root / "bad" / "adapter_model.safetensors").unlink()


def leave_an_unusable_name(root: Path) -> None:
    make_narrow_expert(root / "bad name", MODULE, (6, 4))


def leave_an_empty_version(root: Path) -> None:
    (root / "bad" / "v0001").mkdir(parents=True)


def leave_a_manifest_cut_short(root: Path) -> None:
    shutil.copytree(root / "low", root / "bad")
    os.truncate(root / "bad" / "v0001" / "expert.json", 40)


def leave_a_copy(root: Path) -> None:
    shutil.copytree(root / "low", root / "bad")


def leave_a_strange_file(root: Path) -> None:
    shutil.copytree(root / "low", root / "bad")
    (root / "bad" / "v0001" / "expert (1).json").touch()


def leave_a_file_in_place_of_a_manifest(root: Path) -> None:
    (root / "bad" / "v0001" / "expert.json").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (leave_a_broken_link, "link to nowhere, which is not there"),
        (leave_half_of_an_adapter, "no adapter_config.json"),
        (leave_the_other_half, r"no adapter_model\.safetensors"),
        (leave_an_unusable_name, "letters, digits"),
        (leave_an_empty_version, "expert.json"),
        (leave_a_manifest_cut_short, "expert.json cannot be used"),
        (leave_a_copy, "holds version 1 of 'low'"),
        (leave_a_strange_file, r"expert \(1\)\.json is no plain file"),
        (leave_a_file_in_place_of_a_manifest, "no plain file"),
    ],
)
def test_a_bad_folder_never_stops_the_rest(
    root: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(root)
    library = Library.open(root)
    assert library.names == ("full", "low", "plain")
    ((name, reason),) = library.problems.items()
    assert re.search(says, reason)
    for use in (library.expert, library.deltas, library.manifest, library.examples, library.verify):
        with pytest.raises(LibraryError, match=says):
            use(name)
    assert library.deltas("low").shapes
    experts, problems = library.read_experts()
    assert (list(experts), problems) == (["full", "low", "plain"], library.problems)


def test_an_expert_that_only_its_weights_show_as_bad_does_not_stop_the_rest(root: Path) -> None:
    (root / "plain" / "adapter_model.safetensors").write_bytes(b"cut")
    experts, problems = Library.open(root).read_experts()
    assert list(experts) == ["full", "low"]
    assert "adapter_model.safetensors cannot be read" in problems["plain"]


@pytest.mark.parametrize(
    "stray", [".DS_Store", "._expert.json", "README.md", ".gitattributes", "Thumbs.db", "LICENSE"]
)
def test_stray_files_do_no_harm(root: Path, stray: str) -> None:
    for place in (root, root / "low", root / "low" / "v0001", root / "plain"):
        (place / stray).write_bytes(b"\0")
    library = Library.open(root)
    assert (library.names, library.problems) == (("full", "low", "plain"), {})
    for name in library.names:
        library.verify(name)
        library.deltas(name)


def test_a_library_of_nothing_but_problems_says_them(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    leave_half_of_an_adapter(tmp_path / "library")
    leave_a_broken_link_called_other(tmp_path / "library")
    with pytest.raises(LibraryError, match=r"no adapter_config\.json.*link to nowhere"):
        Library.open(tmp_path / "library")


def leave_a_broken_link_called_other(root: Path) -> None:
    (root / "other").symlink_to("nowhere")


def let_all_read(folder: Path) -> None:
    """Let every user read what is in a folder of a test; pytest's own are for one user only."""
    above = takewhile(Path(tempfile.gettempdir()).__ne__, folder.parents)
    for path in (*above, folder, *folder.rglob("*")):
        path.chmod(0o755)


@contextmanager
def as_another_user() -> Iterator[None]:
    """Be a user who owns nothing, as far as files go; root may read all."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        ("low", 0o000),
        ("low", 0o600),
        ("low", 0o100),
        ("low/v0001", 0o000),
        ("low/v0001", 0o600),
        ("low/v0001/expert.json", 0o000),
        ("low/v0001/weights-00001.safetensors", 0o000),
        ("plain", 0o000),
        ("plain", 0o600),
        ("plain/adapter_config.json", 0o000),
        ("plain/adapter_model.safetensors", 0o000),
        ("plain/examples.txt", 0o000),
    ],
)
def test_what_may_not_be_read_is_named_and_does_not_stop_the_rest(
    root: Path, place: str, mode: int
) -> None:
    name, other = ("low", "plain") if place.startswith("low") else ("plain", "low")
    let_all_read(root.parent)
    Library.open(root).read_experts()
    (root / place).chmod(mode)
    try:
        with as_another_user():
            experts, problems = Library.open(root).read_experts()
    finally:
        (root / place).chmod(0o755)
    assert list(experts) == sorted(["full", other])
    assert f"/{name}" in problems[name]
    assert "Permission denied" in problems[name]


def test_a_folder_from_outside_that_may_not_be_read_is_named(
    tmp_path: Path, base: Checkpoint
) -> None:
    folder = make_narrow_expert(tmp_path / "lora", MODULE, (6, 4))
    let_all_read(tmp_path)
    open_expert_folder(folder, base)
    for place in (folder, folder / "adapter_config.json", folder / "adapter_model.safetensors"):
        place.chmod(0o000)
        try:
            with as_another_user(), pytest.raises(AdapterError, match="Permission denied"):
                open_expert_folder(folder, base)
            with as_another_user(), pytest.raises(AdapterError, match="Permission denied"):
                load_peft(folder)
        finally:
            place.chmod(0o755)


def test_what_is_no_expert_is_left_alone(root: Path) -> None:
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").touch()
    (root / "todo.txt").touch()
    assert Library.open(root).problems == {}


def test_a_version_is_read_by_its_number(root: Path) -> None:
    store = VersionStore(root)
    store.add("low", make_expert_deltas(2), LowRankForm(), About(source=Source("merge")))
    library = Library.open(root)
    for name, seed in (("low@1", 1), ("low@2", 2), ("low", 2), ("gone@1", 2)):
        digest = make_expert_deltas(seed).expert.digest
        assert library.expert(name).digest == library.manifest(name).digest == digest
        weight = f"{MODULE}.weight"
        assert torch.equal(
            library.deltas(name).delta(weight), make_expert_deltas(seed).delta(weight)
        )
        library.verify(name)
    assert library.examples("low@1") == ["one", "two"]
    assert library.examples("low") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("low@3", "no version 3; it has: 1"),
        ("low@0", "NAME@2 is version 2"),
        ("low@", "NAME@2 is version 2"),
        ("low@x", "NAME@2 is version 2"),
        ("low@1@1", "NAME@2 is version 2"),
        ("@1", "expert name ''"),
        ("gone@2", "only says that the expert was removed"),
        ("never@1", "no versions of 'never'"),
        ("plain@1", "PEFT folder and has no versions"),
        ("../low@1", "expert name"),
    ],
)
def test_a_version_that_is_not_there_is_named(root: Path, name: str, says: str) -> None:
    library = Library.open(root)
    for use in (library.expert, library.deltas, library.manifest, library.verify):
        with pytest.raises(LibraryError, match=says):
            use(name)


def test_examples_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(" one \n\n\ttwo\n", encoding="utf-8")
    assert read_examples(tmp_path / "prompts.txt") == ["one", "two"]
    (tmp_path / "prompts.txt").write_bytes(b"\xff")
    for file in ("prompts.txt", "nowhere.txt"):
        with pytest.raises(LibraryError, match=f"{file} cannot be read"):
            read_examples(tmp_path / file)


def test_what_is_usable_is_all_but_what_cannot_be_read(root: Path) -> None:
    assert Library.open(root).usable() == Library.open(root)
    (root / "plain" / "adapter_model.safetensors").write_bytes(b"cut")
    usable = Library.open(root).usable()
    assert usable.names == ("full", "low")
    assert list(usable.digests) == ["full", "low"]
    with pytest.raises(LibraryError, match=r"'plain' cannot be used: .*cannot be read"):
        usable.examples("plain")
    for name in ("full", "low"):
        (root / name / "v0001" / "weights-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(LibraryError, match="no expert can be used"):
        Library.open(root).usable()
