"""Manifests: read as they were written, and refused by file and key for anything else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import LibraryError
from adapters.files.facts import DeltaReport
from adapters.library.manifest import MAX_FILE_BYTES, About, Manifest, Source, read_json, to_json

MANIFEST = Manifest(
    name="sql",
    version=3,
    digest="d" * 64,
    base="b" * 64,
    source=Source(
        "merge",
        None,
        "ties",
        {"density": 0.2, "majority": "mass", "steps": 3, "rescale": True},
        {"a": "1", "b": "2"},
    ),
    licence="Apache-2.0",
    examples=("Größe?", "two\nlines"),
    scores={"exact": 0.5, "count": 3},
    report=DeltaReport(
        "low_rank", {"q_proj": 0.75}, {"norm.weight": 1e-9}, {"layers.0.q_proj": 4}, 100, 10
    ),
    created="2026-11-24T12:00:00+00:00",
)


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "expert.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_it_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    assert read_json(Manifest, written(tmp_path, to_json(MANIFEST))) == MANIFEST


def test_equal_manifests_have_one_text_in_the_order_of_its_keys() -> None:
    turned = replace(MANIFEST, scores={"count": 3, "exact": 0.5})
    assert to_json(turned) == to_json(MANIFEST)
    assert list(json.loads(to_json(MANIFEST))) == sorted(json.loads(to_json(MANIFEST)))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("oops", 1, "key 'oops' of it is unknown"),
        ("digest", None, "it.digest must be str, got None"),
        ("version", "3", "it.version must be int, got '3'"),
        ("version", True, "it.version must be int"),
        ("version", 3.0, "it.version must be int"),
        ("licence", 3, "it.licence must be str"),
        ("examples", ["a", 1], "it.examples[1] must be str"),
        ("examples", "a", "it.examples must be tuple"),
        ("scores", {"exact": "0.5"}, "it.scores.exact must be float"),
        ("scores", [], "it.scores must be"),
        ("source", "merge", "it.source must be Source"),
        ("source.kind", "theft", "it.source.kind must be"),
        ("source.parents", {"a": 1}, "it.source.parents.a must be str"),
        ("source.options", {"a": None}, "it.source.options.a must be"),
        ("source.oops", 1, "key 'oops' of it.source is unknown"),
        ("report", None, "it.report must be DeltaReport"),
        ("report.form", "zip", "the form 'zip' is unknown"),
        ("report.ranks", {"q": 1.5}, "it.report.ranks.q must be int"),
    ],
)
def test_a_key_that_is_unknown_or_mistyped_is_named(
    tmp_path: Path, path: str, value: Any, says: str
) -> None:
    content = json.loads(to_json(MANIFEST))
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[key] = value
    with pytest.raises(LibraryError) as error:
        read_json(Manifest, written(tmp_path, json.dumps(content)))
    assert says in str(error.value)
    assert str(tmp_path / "expert.json") in str(error.value)


@pytest.mark.parametrize(
    "key", sorted(json.loads(to_json(MANIFEST)).keys() - {"twin", "invocation", "alone"})
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    content = json.loads(to_json(MANIFEST))
    del content[key]
    with pytest.raises(LibraryError, match=f"expert.json.*key '{key}' of it is missing"):
        read_json(Manifest, written(tmp_path, json.dumps(content)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "must be Manifest"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\xff", "decode"),
        (" " * (MAX_FILE_BYTES + 1), "more than"),
    ],
    ids=["empty", "list", "nan", "infinite", "twice", "deep", "bytes", "large"],
)
def test_a_file_that_is_no_sound_json_is_refused(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    with pytest.raises(LibraryError, match=says):
        read_json(Manifest, written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"nowhere\.json"):
        read_json(Manifest, tmp_path / "nowhere.json")


def test_examples_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    source = Source("peft")
    About(source=source, examples=("x" * 16384,) * 1024)
    with pytest.raises(LibraryError, match="at most 1024"):
        About(source=source, examples=("x",) * 1025)
    with pytest.raises(LibraryError, match="example 2 has more than 16384 bytes"):
        About(source=source, examples=("x", "ü" * 8193))
    content = json.loads(to_json(MANIFEST)) | {"examples": ["x"] * 1025}
    with pytest.raises(LibraryError, match=r"expert\.json.*at most 1024"):
        read_json(Manifest, written(tmp_path, json.dumps(content)))


def test_a_manifest_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(LibraryError, match="shorten its texts"):
        to_json(replace(MANIFEST, description="x" * MAX_FILE_BYTES))
