"""A checkup finds all that is wrong in a library at once, and nothing in a sound one."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import AdapterError, LibraryError
from adapters.expert import Expert
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm
from adapters.library.checkup import examine, explain_stale
from adapters.library.entries import ENTRIES, Entry, write_entry
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from tests.factories.experts import make_narrow_expert
from tests.factories.versions import ABOUT, MODULE, make_checkpoint, make_expert_deltas


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound library: versions, a PEFT folder, an expert that is gone, an entry, stray files."""
    base = make_checkpoint(tmp_path / "base", 0)
    store = VersionStore(tmp_path / "library")
    for seed in (1, 2):
        store.add("low", make_expert_deltas(seed), LowRankForm(), ABOUT, base)
    store.add("gone", make_expert_deltas(3), LowRankForm(), ABOUT)
    store.remove("gone")
    make_narrow_expert(store.root / "plain", MODULE, (6, 4))
    digests = Library.open(store.root).digests
    write_entry(store.root / ENTRIES, Entry("both", dict.fromkeys(digests, 0.5), digests, {}))
    for stray in (".DS_Store", "README.md", "low/.DS_Store", "low/v0001/._x"):
        (store.root / stray).touch()
    return store.root


def find(root: Path, grade: str = "wrong") -> Mapping[str, str]:
    faults = examine(root).faults
    assert all(fault.remedy for fault in faults)
    return {fault.place: fault.what for fault in faults if fault.grade == grade}


def test_nothing_is_wrong_in_a_sound_library(root: Path) -> None:
    found = examine(root)
    assert found.faults == []
    assert found.experts == Library.open(root).digests


def test_all_that_is_wrong_is_found_at_once(root: Path) -> None:
    base = Checkpoint.open(root.parent / "base")
    VersionStore(root).add("full", make_expert_deltas(4), DenseForm(), ABOUT, base)
    for file in (
        root / "low" / "v0001" / "weights-00001.safetensors",
        root / "gone" / "v0001" / "weights-00001.safetensors",
    ):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    (root / "plain" / "adapter_model.safetensors").write_bytes(b"cut")
    make_narrow_expert(root / "wide", MODULE, (9, 4))
    make_narrow_expert(root / "odd name", MODULE, (6, 4))
    (root / "link").symlink_to("nowhere")
    (root / "notes").mkdir()
    (root / "notes.txt").touch()
    (root / "low" / "notes").mkdir()
    (root / ".staging-dead" / "version").mkdir(parents=True)
    (root / ENTRIES / "cut.json").write_text("{", encoding="utf-8")
    (root.parent / "base").rename(root.parent / "away")
    wrong = find(root)
    assert wrong.keys() == {
        "library.json",
        "low@1",
        "gone@1",
        "plain",
        "odd name",
        "link",
        "notes",
        "notes.txt",
        "low/notes",
        ".staging-dead",
        "router/entries/cut.json",
        "router/entries/both.json",
    }
    assert "is not there" in wrong["library.json"]
    assert "is not what was added" in wrong["low@1"]
    assert "plain, gone since" in wrong["router/entries/both.json"]

    (root.parent / "away").rename(root.parent / "base")
    assert find(root).keys() == wrong.keys() - {"library.json"} | {"wide"}


def test_a_base_with_other_weights_is_found(root: Path) -> None:
    shutil.rmtree(root.parent / "base")
    make_checkpoint(root.parent / "base", 7)
    assert "another base" in find(root)["library.json"]


def test_an_expert_whose_current_version_is_bad_is_named_once_and_its_others_are_read(
    root: Path,
) -> None:
    (root / "low" / "v0002" / "expert.json").unlink()
    assert find(root).keys() == {"low", "router/entries/both.json"}
    VersionStore(root).restore("low")
    assert find(root).keys() == {"low@2", "router/entries/both.json"}


def test_a_library_of_which_nothing_can_be_used_is_examined_too(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    assert examine(tmp_path / "library").faults == []
    (tmp_path / "library" / "a").symlink_to("nowhere")
    assert find(tmp_path / "library").keys() == {"a"}
    with pytest.raises(LibraryError, match="no such folder"):
        examine(tmp_path / "nowhere")


ACTS = ("delete", "cut", "junk", "link", "circle", "folder", "stray", "rename", "unknown key")


def spoil(path: Path, act: str, name: str) -> None:
    """Do to a file or folder of a library what people and their tools do."""
    if act == "stray":
        stray = (path if path.is_dir() else path.parent) / name
        if not stray.is_dir():
            stray.write_bytes(b"\0")
        return
    if not path.exists():
        return
    if act == "rename":
        if not os.path.lexists(path.with_name(name)):
            path.rename(path.with_name(name))
        return
    if path.is_file() and act in ("cut", "junk"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if act == "cut" else b"\xff")
        return
    if path.is_file() and act == "unknown key":
        path.write_bytes(path.read_bytes().replace(b'"name"', b'"nome"'))
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if act in ("link", "circle"):
        path.symlink_to(path.name if act == "circle" else "nowhere")
    elif act == "folder":
        path.mkdir()


@given(data=st.data())
def test_whatever_is_done_to_one_expert_the_others_are_what_they_were(
    root: Path, tmp_path: Path, data: st.DataObject
) -> None:
    copy = tmp_path / "spoilt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    victim, other = data.draw(st.permutations(["low", "plain"]))
    places = sorted(path.relative_to(copy) for path in (copy / victim).rglob("*"))
    names = st.sampled_from(
        ["x.bin", "v0009", "expert (1).json", "weights-00002.safetensors", "é", "removed", "-"]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place = copy / data.draw(st.sampled_from([Path(victim), *places]))
        if place.parent.is_dir():
            spoil(place, data.draw(st.sampled_from(ACTS)), data.draw(names))

    before, library = Library.open(root), Library.open(copy)
    assert library.expert(other).digest == before.expert(other).digest
    for use in (library.expert, library.deltas, library.manifest, library.verify, library.examples):
        try:
            found = use(victim)
        except AdapterError:
            continue
        if isinstance(found, Expert) and victim in library.managed:
            digests = [m.digest for m in VersionStore(root).versions(victim)]
            assert found.digest in digests
    checkup = examine(copy)
    assert checkup.experts[other] == before.expert(other).digest
    for name in (victim, other):
        try:
            VersionStore(copy).remove(name)
            assert name not in Library.scan(copy).names
        except AdapterError:
            continue


def test_what_something_was_made_of_is_compared_with_what_there_is() -> None:
    assert explain_stale({"a": "1"}, {"a": "1", "b": "2"}) is None
    said = explain_stale({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0"})
    assert said == "it was made of c, gone since and b, changed since"
