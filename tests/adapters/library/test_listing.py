"""A library at a glance says what its manifests say."""

from pathlib import Path

from adapters.deltas import Deltas, LowRankDeltas
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import LowRankForm, OneBitForm
from adapters.files.peft import load_peft
from adapters.library.ingest import Draft, OwnerNotes, draft_folder, write_drafts
from adapters.library.library import Library
from adapters.library.listing import list_experts
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from tests.factories.experts import make_expert, make_plain_base


def no_score(written: Deltas) -> dict[str, float]:
    return {}


def make_library(root: Path) -> Path:
    """Make a library of a PEFT folder, a version of low rank, and one in a form without ranks."""
    base = make_plain_base(root / "base", 0)
    library = root / "library"
    make_expert(library / "plain", base, seed=0, layers=range(2), rank=3)
    (library / "plain" / "examples.txt").write_text("one\ntwo\n", encoding="utf-8")
    make_expert(root / "other", base, seed=1, layers=range(2), rank=2)

    store = VersionStore(library)
    checkpoint = Checkpoint.open(base)
    notes = OwnerNotes(licence="MIT")
    added = draft_folder(root / "other", "added", checkpoint, LowRankForm(), notes)
    signs = Draft(
        "signs",
        LowRankDeltas(load_peft(root / "other")),
        OneBitForm(),
        About(source=Source("compress")),
    )
    write_drafts(store, [added, signs], lambda draft: no_score, lambda draft, count: None)
    return library


def test_a_listing_says_what_the_manifests_say(tmp_path: Path) -> None:
    root = make_library(tmp_path)
    manifests = Library.open(root).manifests
    listed = {row.name: row for row in list_experts(root).experts}
    assert list(listed) == list(manifests) == ["added", "plain", "signs"]
    for name, manifest in manifests.items():
        row = listed[name]
        assert (row.version, row.form, row.kind) == (
            manifest.version,
            manifest.form,
            manifest.source.kind,
        )
        assert row.ranks == tuple(sorted(set(manifest.report.ranks.values())))
        assert (row.size, row.examples) == (manifest.report.bytes_after, len(manifest.examples))
        assert row.licence == manifest.licence


def test_weights_without_a_header_are_named(tmp_path: Path) -> None:
    root = make_library(tmp_path)
    (root / "plain" / "adapter_model.safetensors").write_bytes(b"nothing")
    listing = list_experts(root)
    assert [row.name for row in listing.experts] == ["added", "signs"]
    assert "adapter_model.safetensors cannot be read" in listing.problems["plain"]


def test_writing_a_draft_tells_how_many_weights_were_read(tmp_path: Path) -> None:
    base = Checkpoint.open(make_plain_base(tmp_path / "base", 0))
    make_expert(tmp_path / "sql", base.folder, seed=0, layers=range(2), rank=3)
    draft = draft_folder(tmp_path / "sql", "sql", base, LowRankForm(), OwnerNotes())
    counts: list[int] = []
    store = VersionStore(tmp_path / "library")
    write_drafts(store, [draft], lambda draft: no_score, lambda draft, count: counts.append(count))
    assert sorted(set(counts)) == list(range(1, 1 + len(draft.deltas.shapes)))
