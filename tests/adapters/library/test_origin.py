"""What a folder says of its base, tokenizer and template is told where it differs."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.library.origin import note_differences


def write(folder: Path, **files: Any) -> Path:
    """Write files of JSON, or of text; `__` stands for the dot in a name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def vocabulary(*words: str) -> dict[str, Any]:
    return {"model": {"vocab": {word: k for k, word in enumerate(words)}}, "added_tokens": []}


@pytest.mark.parametrize(
    "stated",
    ["owner/Base", "base", "/far/away/base/", "owner/known-as", "org/cached"],
)
def test_a_base_of_the_same_name_is_the_base(tmp_path: Path, stated: str) -> None:
    base = write(tmp_path / "models--org--cached" / "snapshots" / "base")
    write(base, config__json={"_name_or_path": "them/known-as"})
    adapter = write(tmp_path / "lora", adapter_config__json={"base_model_name_or_path": stated})
    assert list(note_differences(adapter, base)) == []


@pytest.mark.parametrize("file", ["adapter_config__json", "config__json"])
def test_another_base_is_told(tmp_path: Path, file: str) -> None:
    key = "base_model_name_or_path" if file.startswith("adapter") else "_name_or_path"
    mine = write(tmp_path / "mine", **{file: {key: "meta-llama/Meta-Llama-3-8B"}})
    (note,) = note_differences(mine, write(tmp_path / "base"))
    assert "meta-llama/Meta-Llama-3-8B" in note
    assert str(tmp_path / "base") in note


@pytest.mark.parametrize("place", ["chat_template__jinja", "tokenizer_config__json"])
def test_another_template_is_told_wherever_it_is(tmp_path: Path, place: str) -> None:
    base = write(tmp_path / "base", chat_template__jinja="{{ messages }}\n")
    for template, notes in (("{{ messages }}", 0), ("{{ other }}", 1)):
        content = template if place.endswith("jinja") else {"chat_template": template}
        mine = write(tmp_path / template, **{place: content})
        assert len(list(note_differences(mine, base))) == notes


def test_other_tokens_are_told_and_other_settings_are_not(tmp_path: Path) -> None:
    base = write(tmp_path / "base", tokenizer__json=vocabulary("a", "b") | {"version": "1"})
    same = write(tmp_path / "same", tokenizer__json=vocabulary("a", "b") | {"version": "2"})
    assert list(note_differences(same, base)) == []
    other = write(tmp_path / "other", tokenizer__json=vocabulary("b", "a"))
    more = {"added_tokens": [{"content": "<tool>", "id": 2}]}
    added = write(tmp_path / "added", tokenizer__json=vocabulary("a", "b") | more)
    for folder in (other, added):
        (note,) = note_differences(folder, base)
        assert "tokenizer.json" in note


def test_files_that_are_damaged_say_nothing(tmp_path: Path) -> None:
    base = write(tmp_path / "base", tokenizer__json=vocabulary("a"))
    mine = write(tmp_path / "mine", adapter_config__json="{", tokenizer_config__json="[1]")
    assert list(note_differences(mine, base)) == []
