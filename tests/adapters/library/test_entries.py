"""Entries on disk: what was written is read back, and what is damaged is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.coefficient import Coefficient, Pair
from adapters.errors import LibraryError
from adapters.library.entries import Entry, read_entries, write_entry

CONTENT = {"coefficients": {"sql": 0.5}, "digests": {"sql": "ab"}, "source": {}}


def entry(name: str = "both", **coefficients: Coefficient) -> Entry:
    return Entry(
        name,
        coefficients,
        dict.fromkeys(coefficients, "ab"),
        {"method": "learned", "steps": 60, "loss": 0.25},
    )


def test_entries_are_read_as_they_were_written_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "router" / "entries"
    assert read_entries(folder) == {}
    written = {
        e.name: e for e in (entry("b", sql=(0.1, 0.25), math=Pair(1.0, 0.5)), entry("a", sql=-2.0))
    }
    for one in written.values():
        write_entry(folder, one)
    found = read_entries(folder)
    assert found == written
    assert list(found) == ["a", "b"]
    assert sorted(file.name for file in folder.iterdir()) == ["a.json", "b.json"]


def test_a_name_is_taken_until_it_may_be_replaced(tmp_path: Path) -> None:
    write_entry(tmp_path, entry(sql=0.5))
    with pytest.raises(LibraryError, match=r"both\.json is there already"):
        write_entry(tmp_path, entry(sql=0.7))
    assert read_entries(tmp_path)["both"].coefficients == {"sql": 0.5}
    write_entry(tmp_path, entry(math=0.7), replace=True)
    assert read_entries(tmp_path)["both"] == entry(math=0.7)


@pytest.mark.parametrize(
    ("name", "coefficients", "says"),
    [
        ("a b", {"sql": 0.5}, "letters, digits"),
        ("../up", {"sql": 0.5}, "letters, digits"),
        ("router", {"sql": 0.5}, "are taken"),
        ("none", {}, "one expert or more"),
        ("odd", {"sql": float("nan")}, "no finite number"),
        ("odd", {"sql": (0.5, float("inf"))}, "no finite number"),
    ],
)
def test_an_entry_that_could_not_be_served_is_refused(
    name: str, coefficients: dict[str, Coefficient], says: str
) -> None:
    with pytest.raises(LibraryError, match=says):
        entry(name, **coefficients)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut", '{"coefficients": {', "cut.json cannot be used"),
        ("more", json.dumps({**CONTENT, "more": 1}), r"more\.json .* key 'more' of it is unknown"),
        (
            "text",
            json.dumps({**CONTENT, "coefficients": {"sql": "0.5"}}),
            "coefficients.sql must be",
        ),
        (
            "list",
            json.dumps({**CONTENT, "coefficients": {"sql": ["0.5"]}}),
            "a coefficient is a number",
        ),
        (
            "other",
            json.dumps({**CONTENT, "digests": {"math": "ab"}}),
            r"other\.json .* a digest for each",
        ),
        ("base", json.dumps(CONTENT), r"base\.json .* are taken"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    with pytest.raises(LibraryError, match=says):
        read_entries(tmp_path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    outside: Any = tmp_path / "outside.json"
    outside.write_text(json.dumps(CONTENT), encoding="utf-8")
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "in.json").symlink_to(outside)
    with pytest.raises(LibraryError, match="leads out of"):
        read_entries(tmp_path / "entries")
