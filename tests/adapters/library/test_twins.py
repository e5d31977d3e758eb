"""Parts of Twin-Merging in a library: all or none, and never an exclusive one alone."""

import json
import shutil
from pathlib import Path

import pytest
from torch.testing import assert_close

from adapters.errors import LibraryError
from adapters.files.delta_forms import LowRankForm
from adapters.library.ingest import check_twin_names, draft_compression, write_drafts
from adapters.library.library import Library
from adapters.library.manifest import TwinPart
from adapters.library.twins import TwinTies
from adapters.library.versions import VersionStore
from adapters.mix import Mix, MixRules
from tests.factories.twins import add_twins
from tests.factories.versions import ABOUT, MODULE, make_checkpoint, make_expert_deltas

WEIGHT = f"{MODULE}.weight"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    base, store = make_checkpoint(tmp_path / "base", 0), VersionStore(tmp_path / "library")
    for seed, name in enumerate(("math", "sql"), 1):
        store.add(name, make_expert_deltas(seed), LowRankForm(), ABOUT, base)
    return Library.open(store.root)


def test_parts_say_what_they_are_and_add_up_to_their_experts(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    assert made.names == ("math", "sql", "t-math", "t-shared", "t-sql")
    parts = made.parts
    assert {name: part.role for name, part in parts.items()} == {
        "t-math": "exclusive",
        "t-shared": "shared",
        "t-sql": "exclusive",
    }
    assert len({part.family for part in parts.values()}) == 1
    assert parts["t-sql"].original_digest == made.digests["sql"]
    assert made.examples("t-sql") == list(ABOUT.examples)
    assert not made.examples("t-shared")
    whole = made.deltas("t-shared").delta(WEIGHT) + made.deltas("t-sql").delta(WEIGHT)
    assert_close(whole, made.deltas("sql").delta(WEIGHT))


def test_whole_experts_go_before_their_parts_until_they_are_gone(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    assert made.classes == ("math", "sql")
    VersionStore(made.root).remove("sql")
    left = Library.open(made.root)
    assert left.classes == ("math", "t-sql")
    assert TwinTies.of(left.parts, left.digests).shared == {
        "t-math": "t-shared",
        "t-sql": "t-shared",
    }


def test_manifests_from_before_there_were_parts_are_read(library: Library) -> None:
    file = library.root / "sql" / "v0001" / "expert.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["twin"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert Library.open(library.root).manifest("sql").twin is None


def test_no_change_of_the_library_leaves_an_exclusive_part_alone(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    store = VersionStore(made.root)
    with pytest.raises(LibraryError, match="t-math, t-sql: would be left without the shared part"):
        store.remove("t-shared")
    with pytest.raises(LibraryError, match="would be left without"):
        store.add("t-shared", make_expert_deltas(9), LowRankForm(), ABOUT)

    # Others under the same prefix: all of them, or another prefix.
    with pytest.raises(
        LibraryError, match="t-math: made with the t-shared that this would replace"
    ):
        check_twin_names(made, "t", ["sql"])
    again = add_twins(made, ["math", "sql"], rank=1)
    assert {again.manifest(name).version for name in again.parts} == {2}
    with pytest.raises(LibraryError, match="t-sql: would be left without"):
        store.restore("t-sql", 1)
    assert Library.open(made.root).names == again.names

    # One by one, from the exclusive ones on, and back from the shared one on.
    for name in ("t-sql", "t-math", "t-shared"):
        store.remove(name)
    with pytest.raises(LibraryError, match="would be left without"):
        store.restore("t-sql", 1)
    for name in ("t-shared", "t-sql"):
        store.restore(name, 1)
    assert Library.open(made.root).names == ("math", "sql", "t-shared", "t-sql")


def test_what_a_disk_lost_is_a_problem_that_says_what_to_do(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    shutil.rmtree(made.root / "t-shared")
    left = Library.open(made.root)
    assert left.names == ("math", "sql")
    assert "beyond t-shared, which is not there" in left.problems["t-sql"]


def test_damaged_weights_of_the_shared_part_take_the_others_with_them(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    (weights,) = (made.root / "t-shared" / "v0001").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    usable = Library.open(made.root).usable()
    assert usable.names == ("math", "sql")
    assert usable.problems.keys() == {"t-math", "t-shared", "t-sql"}


def test_a_part_keeps_its_name_when_it_is_compressed(library: Library) -> None:
    made = add_twins(library, ["math", "sql"])
    with pytest.raises(LibraryError, match="in place"):
        draft_compression(made, "t-sql", LowRankForm(1), "small")
    draft = draft_compression(made, "t-sql", LowRankForm(1), "t-sql")
    write_drafts(VersionStore(made.root), [draft], lambda d: lambda written: {}, lambda *told: None)
    assert Library.open(made.root).parts["t-sql"] == made.parts["t-sql"]


def test_two_parts_of_one_name_are_refused(library: Library) -> None:
    with pytest.raises(LibraryError, match="two parts would be called 't-shared'"):
        check_twin_names(library, "t", ["shared"])


def test_a_mix_with_an_exclusive_part_has_the_shared_one_beyond_its_limit() -> None:
    exclusive = dict.fromkeys((f"t-{name}" for name in "abcde"), "t-shared")
    rules = MixRules(frozenset([*exclusive, "t-shared", "plain"]), 2, shared=exclusive)
    four = {f"t-{name}": 0.25 for name in "abcd"}
    assert rules.mix(four) == Mix.of({**four, "t-shared": 1.0})
    with pytest.raises(ValueError, match="5 experts in one mix"):
        rules.mix({**four, "t-e": 0.25})
    assert rules.mix({"t-a": 1.0, "t-shared": 0.5}) == Mix.of({"t-a": 1.0, "t-shared": 0.5})
    assert rules.mix({"t-a": 1.0, "t-shared": 0.0}) == Mix.of({"t-a": 1.0})
    assert rules.mix({"t-a": 0.01}).is_base, "the grid makes it nothing"
    assert rules.mix({"plain": 1.0}) == Mix.of({"plain": 1.0})


def test_ties_name_an_exclusive_part_whose_shared_one_is_not_served() -> None:
    part = TwinPart("exclusive", "t", "f" * 64, "sql", "d")
    with pytest.raises(LibraryError, match="t-sql is what sql knows beyond t-shared"):
        TwinTies.of({"t-sql": part}, {"t-sql": "x"})
    other = TwinPart("shared", "t", "0" * 64)
    with pytest.raises(LibraryError, match="beyond another t-shared"):
        TwinTies.of({"t-sql": part, "t-shared": other}, {"t-sql": "x", "t-shared": "y"})
