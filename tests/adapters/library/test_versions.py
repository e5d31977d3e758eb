"""Versions: all that was added is there, byte for byte, whoever else writes or is killed."""

import fcntl
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapters.errors import ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, Form, LowRankForm, OneBitForm
from adapters.files.finetune import TaskVector
from adapters.files.safetensors_writer import save
from adapters.library.library import Library
from adapters.library.manifest import Manifest, read_json, to_json
from adapters.library.versions import NewVersion, VersionStore
from tests.factories.versions import ABOUT, MODULE, SHAPES, make_checkpoint, make_expert_deltas

FORMS = (LowRankForm(rank=2), OneBitForm(), DenseForm())


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "base", 0)


@pytest.fixture
def tuned(tmp_path: Path, base: Checkpoint) -> TaskVector:
    return TaskVector(base, make_checkpoint(tmp_path / "tuned", 1))


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "library")


def left(store: VersionStore) -> set[str]:
    """Return the names of what the root holds beside the lock."""
    return {p.name for p in store.root.iterdir()} - {".lock"}


def test_an_expert_is_what_was_added(store: VersionStore, base: Checkpoint) -> None:
    deltas = make_expert_deltas(1)
    manifest = store.add("sql", deltas, LowRankForm(), ABOUT, base)
    assert (
        store.current("sql")
        == manifest
        == read_json(Manifest, store.root / "sql" / "v0001" / "expert.json")
    )
    assert (manifest.name, manifest.version, manifest.form, manifest.report.ranks) == (
        "sql",
        1,
        "low_rank",
        {MODULE: 2},
    )
    assert (manifest.base, manifest.digest) == (base.digest, deltas.expert.digest)
    assert (manifest.licence, manifest.examples) == ("MIT", ("one", "two"))
    assert store.expert(manifest).digest == deltas.expert.digest
    assert store.verify("sql") == [manifest]
    assert left(store) == {"library.json", "sql"}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_equal_content_has_an_equal_digest_in_every_form(
    store: VersionStore, base: Checkpoint, tuned: TaskVector, form: Form
) -> None:
    first, again = (store.add(name, tuned, form, ABOUT, base) for name in ("first", "again"))
    other = store.add("other", TaskVector(tuned.tuned, base), form, ABOUT, None)
    assert first.digest == again.digest != other.digest
    assert store.verify("first") == [first]
    if isinstance(form, DenseForm):
        assert all(
            torch.equal(store.deltas(first).delta(weight), tuned.delta(weight)) for weight in SHAPES
        )


def test_the_highest_version_is_the_expert_and_the_others_stay(
    store: VersionStore, base: Checkpoint
) -> None:
    added = [
        store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, base) for seed in (1, 2)
    ]
    assert [m.version for m in added] == [1, 2]
    assert store.versions("sql") == store.verify("sql") == added
    assert store.current("sql") == added[1]


def test_a_removed_expert_is_gone_and_its_versions_stay(
    store: VersionStore, base: Checkpoint
) -> None:
    first = store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    store.remove("sql")
    assert store.current("sql") is None
    assert store.versions("sql") == store.verify("sql") == [first]
    with pytest.raises(LibraryError, match="removed already"):
        store.remove("sql")
    assert store.add("sql", make_expert_deltas(2), LowRankForm(), ABOUT).version == 3


def test_a_purge_deletes_the_files_and_no_number_is_used_again(
    store: VersionStore, base: Checkpoint
) -> None:
    for seed in (1, 2):
        store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, base)
    store.remove("sql")
    store.remove("sql", purge=True)
    assert [p.name for p in (store.root / "sql").iterdir()] == ["v0003"]
    assert store.versions("sql") == []
    assert store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT).version == 4
    assert left(store) == {"library.json", "sql"}


def test_an_expert_that_is_not_there_is_named_with_those_that_are(
    store: VersionStore, base: Checkpoint
) -> None:
    with pytest.raises(LibraryError, match="it does of: none"):
        store.remove("math")
    assert not store.root.exists()
    store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    for use in (store.current, store.versions, store.verify, store.remove):
        with pytest.raises(LibraryError, match=r"no versions of 'math'; it does of: sql"):
            use("math")


def test_the_base_is_remembered_and_no_other_is_taken(
    store: VersionStore, base: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(LibraryError, match="--base"):
        store.checkpoint()
    store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    assert json.loads((store.root / "library.json").read_text(encoding="utf-8")) == {
        "base": {
            "digest": base.digest,
            "layers": None,
            "source": str(base.folder.resolve()),
            "tied": True,
        }
    }
    assert store.checkpoint().digest == store.checkpoint(base.folder).digest == base.digest
    other = make_checkpoint(tmp_path / "other", 5)
    with pytest.raises(LibraryError, match="another base need a library of their own"):
        store.checkpoint(other.folder)
    with pytest.raises(LibraryError, match="another base"):
        store.add("math", make_expert_deltas(1), LowRankForm(), ABOUT, other)
    save_file(load_file(other.folder / "model.safetensors"), base.folder / "model.safetensors")
    with pytest.raises(LibraryError, match="another base"):
        store.checkpoint()


def test_what_does_not_fit_the_base_is_refused_by_weight(
    store: VersionStore, base: Checkpoint
) -> None:
    with pytest.raises(
        ExpertError,
        match=r"model.layers.7.up.weight is to change as \(6, 4\); the base .* has no such weight",
    ):
        store.add("sql", make_expert_deltas(1, "model.layers.7.up"), LowRankForm(), ABOUT, base)
    with pytest.raises(ExpertError, match=r"as \(5, 4\); the base .* has it as \(6, 4\)"):
        store.add("sql", make_expert_deltas(1, out=5), LowRankForm(), ABOUT, base)
    assert not store.root.exists()


BAD_NAMES = [
    "",
    ".",
    "..",
    "../up",
    "a/b",
    "/etc",
    ".hidden",
    "-a",
    "a b",
    "a\0",
    "sqｌ",
    "ѕql",
    "a\u2215b",
    "x" * 65,
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "base", "auto", "router", "library.json"])
def test_a_name_that_could_lead_elsewhere_or_look_like_another_is_refused(
    store: VersionStore, base: Checkpoint, name: str
) -> None:
    with pytest.raises(LibraryError, match="expert name"):
        store.add(name, make_expert_deltas(1), LowRankForm(), ABOUT, base)
    assert not store.root.exists()


def test_a_peft_folder_gets_no_versions(store: VersionStore, base: Checkpoint) -> None:
    (store.root / "sql").mkdir(parents=True)
    (store.root / "sql" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LibraryError, match="is a PEFT folder"):
        store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)


def link(path: Path, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


STRANGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "expert": (lambda version, away: link(version.parent, away), "leads out of"),
    "version": (link, "is a link"),
    "manifest": (lambda version, away: link(version / "expert.json", away), "no plain file"),
    "weights": (
        lambda version, away: link(version / "weights-00001.safetensors", away),
        "no plain file",
    ),
    "inside": (
        lambda version, away: (version / "weights-00002.safetensors").symlink_to("expert.json"),
        "no plain file",
    ),
    "pickle": (lambda version, away: (version / "weights.bin").touch(), "no plain file"),
    "folder": (
        lambda version, away: (version / "weights-00002.safetensors").mkdir(),
        "no plain file",
    ),
    "moved": (
        lambda version, away: version.rename(version.with_name("v0002")),
        "holds version 1 of 'sql'",
    ),
    "copied": (
        lambda version, away: version.parent.rename(version.parent.with_name("math")),
        "holds version 1 of 'sql'",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_link_or_a_file_that_was_not_added_is_refused(
    store: VersionStore, base: Checkpoint, tmp_path: Path, case: str
) -> None:
    store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    change, says = STRANGE[case]
    change(store.root / "sql" / "v0001", tmp_path / "away")
    with pytest.raises(LibraryError, match=says):
        Library.open(store.root)


def rewrite(
    version: Path,
    change: Callable[[dict[str, torch.Tensor]], Any],
    metadata: dict[str, str] | None = None,
) -> None:
    file = version / "weights-00001.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata) if metadata else save(tensors, file)


def negate(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = ~tensors[name] if tensors[name].dtype == torch.uint8 else -tensors[name]


def lengthen(version: Path) -> None:
    with (version / "weights-00001.safetensors").open("ab") as file:
        file.write(b"x")


def grow(version: Path) -> None:
    save_file({"model.layers.9.up.weight": torch.ones(2, 2)}, version / "weights-00002.safetensors")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "values": lambda version: rewrite(version, negate),
    "cut": lambda version: os.truncate(version / "weights-00001.safetensors", 120),
    "long": lengthen,
    "gone": lambda version: (version / "weights-00001.safetensors").unlink(),
    "more": grow,
    "header": lambda version: rewrite(version, lambda tensors: None, {"note": "x"}),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_weights_that_were_changed_are_found(
    store: VersionStore, base: Checkpoint, tuned: TaskVector, form: Form, case: str
) -> None:
    manifest = store.add("sql", tuned, form, ABOUT, base)
    DAMAGE[case](store.root / "sql" / "v0001")
    with pytest.raises(ExpertError, match="v0001"):
        store.verify("sql")
    with pytest.raises(ExpertError, match="v0001 is not what was added"):
        store.deltas(manifest)
    if form.name == "low_rank" and case in ("values", "cut", "long", "gone"):
        with pytest.raises(ExpertError):
            store.expert(manifest)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_weights_that_change_after_the_check_are_found(
    store: VersionStore, base: Checkpoint, tuned: TaskVector, form: Form
) -> None:
    deltas = store.deltas(store.add("sql", tuned, form, ABOUT, base))
    weight = f"{MODULE}.weight"
    deltas.delta(weight)
    file = store.root / "sql" / "v0001" / "weights-00001.safetensors"
    before = file.stat()
    rewrite(file.parent, negate)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(ExpertError, match="changed while it was read"):
        deltas.delta(weight)


@given(data=st.data())
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_no_flipped_bit_of_any_weight_is_read(
    tmp_path: Path, form: Form, data: st.DataObject
) -> None:
    store, base = VersionStore(tmp_path / "library"), tmp_path / "base"
    if not base.exists():
        checkpoint = make_checkpoint(base, 0)
        change = TaskVector(checkpoint, make_checkpoint(tmp_path / "tuned", 1))
        store.add("sql", change, form, ABOUT, checkpoint)
    manifest = store.current("sql")
    assert manifest is not None
    file = store.root / "sql" / "v0001" / "weights-00001.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(header, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        with pytest.raises(ExpertError, match="v0001"):
            store.deltas(manifest)
        with pytest.raises(ExpertError, match="v0001"):
            store.verify("sql")
    finally:
        file.write_bytes(whole)
    assert store.deltas(manifest).shapes


def test_versions_are_added_together_or_not_at_all(store: VersionStore, base: Checkpoint) -> None:
    good, bad = make_expert_deltas(1), make_expert_deltas(2)
    bad.expert.factors[MODULE].b.zero_()
    with pytest.raises(ExpertError, match="expert 'b': nothing to write: no weight changes"):
        store.add_all(
            [
                NewVersion("a", good, LowRankForm(), ABOUT, base),
                NewVersion("b", bad, LowRankForm(), ABOUT, base),
            ]
        )
    assert left(store) == set()
    made = store.add_all([NewVersion(n, good, LowRankForm(), ABOUT, base) for n in ("a", "b")])
    assert [(m.name, m.version) for m in made] == [("a", 1), ("b", 1)]
    assert made == [store.current("a"), store.current("b")]
    assert {p.name for p in (store.root / "a" / "v0001").iterdir()} == {
        "expert.json",
        "weights-00001.safetensors",
    }


def test_a_version_is_taken_back(store: VersionStore, base: Checkpoint) -> None:
    first, second = (
        store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, base) for seed in (1, 2)
    )
    third = store.restore("sql", 1)
    assert (third.version, third.digest, third.report) == (3, first.digest, first.report)
    assert store.current("sql") == third
    assert store.verify("sql") == [first, second, third]
    assert store.restore("sql").digest == second.digest
    store.remove("sql")
    assert store.restore("sql").digest == second.digest
    with pytest.raises(LibraryError, match="version 6 of 'sql' is the current one"):
        store.restore("sql", 6)
    with pytest.raises(LibraryError, match="only says that the expert was removed"):
        store.restore("sql", 5)
    with pytest.raises(LibraryError, match="no version 9"):
        store.restore("sql", 9)
    store.remove("sql", purge=True)
    with pytest.raises(LibraryError, match="no version before 7"):
        store.restore("sql")


def test_a_damaged_version_is_not_taken_back(store: VersionStore, base: Checkpoint) -> None:
    for seed in (1, 2):
        store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, base)
    rewrite(store.root / "sql" / "v0001", negate)
    with pytest.raises(ExpertError, match="v0001 is not what was added"):
        store.restore("sql")
    assert left(store) == {"library.json", "sql"}


def test_a_damaged_current_version_does_not_hide_the_others(
    store: VersionStore, base: Checkpoint
) -> None:
    first = store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    store.add("sql", make_expert_deltas(2), LowRankForm(), ABOUT, base)
    (store.root / "sql" / "v0002" / "expert.json").unlink()
    with pytest.raises(LibraryError, match=r"expert\.json"):
        store.current("sql")
    assert store.restore("sql").digest == first.digest
    assert store.current("sql") != first
    assert store.expert(store.version("sql", 1)).digest == first.digest


def test_a_moved_base_is_named_and_its_new_place_remembered(
    store: VersionStore, base: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(LibraryError, match="no base yet"):
        store.move_base(base.folder)
    store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
    place = base.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(LibraryError, match=r"base was at .*/base and is not there.*--base"):
        store.checkpoint()
    with pytest.raises(LibraryError, match="another base"):
        store.move_base(make_checkpoint(tmp_path / "other", 5).folder)
    assert store.move_base(place).source == str(place)
    assert store.checkpoint().digest == base.digest


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/model", "no such folder; give a folder, not a hub id"),
        ("nowhere", "no such folder"),
        ("file", "is a file: give its folder"),
        ("link", "is a link to away, which is not there"),
    ],
)
def test_a_base_that_is_no_folder_says_what_it_is(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("away")
    with pytest.raises(LibraryError, match=says):
        store.checkpoint(Path(name))


def test_nan_is_found_even_where_the_manifest_agrees(
    store: VersionStore, base: Checkpoint, tuned: TaskVector, tmp_path: Path
) -> None:
    manifest = store.add("sql", tuned, DenseForm(), ABOUT, base)
    version = store.root / "sql" / "v0001"
    rewrite(version, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    (tmp_path / "copy").mkdir()
    shutil.copy(version / "weights-00001.safetensors", tmp_path / "copy" / "model.safetensors")
    digest = Checkpoint.open(tmp_path / "copy").digest
    (version / "expert.json").write_text(
        to_json(replace(manifest, digest=digest)), encoding="utf-8"
    )
    with pytest.raises(ExpertError, match=r"model\.norm\.weight holds NaN"):
        store.verify("sql")


def test_an_add_that_fails_leaves_nothing(
    store: VersionStore, base: Checkpoint, tuned: TaskVector
) -> None:
    with torch.no_grad():
        broken = {
            name: tensor.fill_(float("inf"))
            for name, tensor in load_file(tuned.tuned.folder / "model.safetensors").items()
        }
    save_file(broken, tuned.tuned.folder / "model.safetensors")
    with pytest.raises(ExpertError, match="NaN or infinite"):
        store.add("sql", tuned, DenseForm(), ABOUT, base)
    assert left(store) == set()


def test_a_disk_that_refuses_is_reported(base: Checkpoint) -> None:
    with pytest.raises(LibraryError, match=r"could not be changed: .* File exists"):
        VersionStore(base.folder / "model.safetensors").add(
            "sql", make_expert_deltas(1), LowRankForm(), ABOUT, base
        )


def test_a_version_that_is_being_written_is_left_alone(
    store: VersionStore, base: Checkpoint
) -> None:
    store.add("sql", make_expert_deltas(0), LowRankForm(), ABOUT, base)
    for name in (".staging-dead", ".staging-bare", ".staging-alive"):
        (store.root / name / "version").mkdir(parents=True)
    (store.root / ".staging-dead" / "lock").touch()
    with (store.root / ".staging-alive" / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.add("sql", make_expert_deltas(1), LowRankForm(), ABOUT, base)
        assert left(store) == {"library.json", "sql", ".staging-alive"}
    store.add("sql", make_expert_deltas(2), LowRankForm(), ABOUT, base)
    assert left(store) == {"library.json", "sql"}


ALTERING = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link"}
"""What audit hooks call the steps that alter folders."""


# Real processes from here on. The fork server has the libraries loaded, so that each starts in
# milliseconds.


def context() -> ForkServerContext:
    server = get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return server


def keep_adding(root: Path, base: Path, ready: Any) -> None:
    store, checkpoint = VersionStore(root), Checkpoint.open(base)
    # The first reading of a process prepares the reader; what is to be killed comes after it.
    assert store.base is None or store.base.digest == checkpoint.digest
    ready.set()
    for seed in count():
        store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, checkpoint)


def add_some(root: Path, base: Path, own: str, ready: Any) -> None:
    store, checkpoint = VersionStore(root), Checkpoint.open(base)
    ready.wait()
    for seed in range(4):
        store.add("shared", make_expert_deltas(seed), LowRankForm(), ABOUT, checkpoint)
        store.add(own, make_expert_deltas(seed), LowRankForm(), ABOUT, checkpoint)


def die_at(step: int, root: Path, base: Path, change: str) -> None:
    """Make a change, killed by the kernel just before this of the steps that alter files."""
    store, checkpoint, steps = VersionStore(root), Checkpoint.open(base), count()

    def at_step(event: str, arguments: tuple[Any, ...]) -> None:
        alters = event in ALTERING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if alters and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(at_step)
    deltas = make_expert_deltas(step)
    if change == "add":
        store.add("sql", deltas, LowRankForm(), ABOUT, checkpoint)
    elif change == "add together":
        store.add_all(
            [NewVersion(name, deltas, LowRankForm(), ABOUT, checkpoint) for name in ("sql", "z")]
        )
    elif change == "restore":
        store.restore("sql")
    else:
        store.remove("sql", purge=True)


def run(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = context().Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def check_whole(store: VersionStore, at_least: int) -> int:
    """Check that all versions are there and whole, and return how many there are."""
    if not (store.root / "sql").is_dir() or not store.names:
        assert at_least == 0
        return 0
    versions = store.verify("sql")
    assert [m.version for m in versions] == list(range(1, len(versions) + 1))
    assert Library.open(store.root).expert("sql").digest == versions[-1].digest
    assert len(versions) >= at_least
    return len(versions)


def test_whenever_it_is_killed_all_versions_are_whole(
    store: VersionStore, base: Checkpoint
) -> None:
    moments, versions, interrupted = random.Random(0), 0, 0
    for attempt in range(200):
        if attempt >= 25 and versions > 5 and interrupted > 5:
            break  # a machine with much to do adds few versions within these moments
        ready = context().Event()
        process = run(keep_adding, store.root, base.folder, ready)
        assert ready.wait(60)
        time.sleep(moments.uniform(0, 0.08))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        interrupted += any(store.root.glob(".staging-*"))
        versions = check_whole(store, versions)
    assert versions > 5
    assert interrupted > 5
    store.add("sql", make_expert_deltas(0), LowRankForm(), ABOUT, base)
    assert left(store) == {"library.json", "sql"}


@pytest.mark.parametrize("change", ["add", "remove", "restore"])
def test_killed_before_any_step_the_state_is_the_old_or_the_new_one(
    store: VersionStore, base: Checkpoint, change: str
) -> None:
    for seed in (1, 0):
        old = store.add("sql", make_expert_deltas(seed), LowRankForm(), ABOUT, base)
    outcomes = []
    for step in count():
        process = run(die_at, step, store.root, base.folder, change)
        process.join()
        now = store.current("sql")
        outcomes.append("old" if now == old else "new")
        if now != old:
            store.verify("sql")
            assert (now and now.version) == (None if change == "remove" else old.version + 1)
            old = now or store.add("sql", make_expert_deltas(0), LowRankForm(), ABOUT)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert outcomes.count("old") > 8
    assert outcomes.count("new") > 1


def test_killed_before_any_step_versions_that_belong_together_are_all_there_or_none(
    store: VersionStore, base: Checkpoint
) -> None:
    for name in ("sql", "z"):
        store.add(name, make_expert_deltas(0), LowRankForm(), ABOUT, base)
    numbers, halves = [1], 0
    for step in count():
        process = run(die_at, step, store.root, base.folder, "add together")
        process.join()
        found = {name: store.current(name) for name in ("sql", "z")}
        digests = {manifest.digest for manifest in found.values() if manifest}
        assert len(digests) == 1
        numbers.append(max(m.version for m in found.values() if m))
        halves += any(store.root.glob("*/v*/pending"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert numbers == sorted(numbers)
    assert halves
    store.add("other", make_expert_deltas(0), LowRankForm(), ABOUT, base)
    assert left(store) == {"library.json", "sql", "z", "other"}
    for name in ("sql", "z"):
        assert store.verify(name)


def test_processes_that_add_at_once_get_versions_of_their_own(
    store: VersionStore, base: Checkpoint
) -> None:
    ready = context().Event()
    owns = ("a", "b", "c", "d")
    processes = [run(add_some, store.root, base.folder, own, ready) for own in owns]
    ready.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [m.version for m in store.verify("shared")] == list(range(1, 17))
    for own in owns:
        assert [m.version for m in store.verify(own)] == [1, 2, 3, 4]
    assert left(store) == {"library.json", "shared", *owns}


def test_a_reader_sees_whole_versions_while_another_process_writes(
    store: VersionStore, base: Checkpoint
) -> None:
    store.add("sql", make_expert_deltas(0), LowRankForm(), ABOUT, base)
    ready, seen, end = context().Event(), list[int](), time.monotonic() + 60
    process = run(keep_adding, store.root, base.folder, ready)
    try:
        assert ready.wait(60)
        while len(set(seen)) < 10 and time.monotonic() < end:
            manifest = Library.open(store.root).managed["sql"]
            seen.append(manifest.version)
            assert store.expert(manifest).digest == manifest.digest
    finally:
        process.kill()
        process.join()
    assert len(set(seen)) == 10
    assert seen == sorted(seen)
