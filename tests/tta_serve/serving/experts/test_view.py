"""What a request sees of the library on disk, before and after its experts change."""

import asyncio
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest

from adapters.errors import LibraryError
from adapters.library.entries import ENTRIES, Entry, write_entry
from adapters.library.library import Library
from adapters.mix import Mix
from router.errors import RouterError
from tests.factories import tiny_library
from tests.factories.counting_engine import CountingEngine
from tta_serve.config import ServeConfig
from tta_serve.exceptions import ConfigError
from tta_serve.serving.experts.view import View, Views
from tta_serve.serving.routing.conversations import Conversations
from tta_serve.serving.routing.probe_cache import ProbeCache


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two experts, and an entry of both that claims to be learned."""
    library = Library.open(tiny_library.make_library(tmp_path_factory.mktemp("views")))
    entry = Entry("both", {"math": 0.5, "sql": (1.0, 0.25)}, library.digests, {"method": "learned"})
    write_entry(library.root / ENTRIES, entry)
    return library


def view(
    library: Path,
    digests: dict[str, str],
    generation: int = 2,
    must: Collection[str] = ("base",),
    before: View | None = None,
) -> View:
    policies = {"learned": {"type": "learned_static", "options": {"entry": "both"}}}
    config = ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {"path": library, "entries": {"half": {"math": 0.5}}},
            "policies": policies,
            "default_policy": "base",
        }
    )
    views = Views(config, 2, CountingEngine(), ProbeCache(), Conversations(1, 1))
    return asyncio.run(views.make(generation, digests, must, before))


def test_entries_of_the_config_and_of_the_library_are_served_and_policies_find_them(
    library: Library,
) -> None:
    found = view(library.root, library.digests, generation=1, must=("base", "learned"))
    assert found.catalog.entries == {
        "half": Mix.of({"math": 0.5}),
        "both": Mix.of({"math": 0.5, "sql": (1.0, 0.25)}),
    }
    assert (found.stale, dict(found.router.unusable)) == ((), {})


def test_an_entry_of_an_expert_with_other_weights_is_stale_and_so_is_its_policy(
    library: Library,
) -> None:
    changed = view(library.root, {**library.digests, "sql": "other"})
    assert (changed.stale, set(changed.catalog.entries)) == (("both",), {"half"})
    assert "experts that are gone or changed" in changed.router.unusable["learned"]
    gone = view(library.root, {"sql": library.digests["sql"]})
    assert (gone.stale, gone.catalog.entries) == (("both", "half"), {})


def test_what_must_work_is_refused_by_name(library: Library) -> None:
    changed = {**library.digests, "sql": "other"}
    with pytest.raises(RouterError, match="policy 'learned'"):
        view(library.root, changed, must=("base", "learned"))
    with pytest.raises(ConfigError, match=r"library\.entries\.half"):
        view(library.root, {"sql": library.digests["sql"]}, generation=1)


def test_a_damaged_entry_and_a_stray_file_do_not_stop_the_others(
    library: Library, tmp_path: Path
) -> None:
    root = shutil.copytree(library.root, tmp_path / "library")
    (root / ENTRIES / "cut.json").write_text('{"coeff', encoding="utf-8")
    (root / ENTRIES / "._both.json").write_bytes(b"\0")
    found = view(root, library.digests, must=("base", "learned"))
    assert sorted(found.catalog.entries) == ["both", "half"]
    (root / ENTRIES / "both.json").write_text("{", encoding="utf-8")
    assert "both.json cannot be used" in view(root, library.digests).router.unusable["learned"]


def test_a_served_expert_whose_folder_breaks_keeps_its_prompts(
    library: Library, tmp_path: Path
) -> None:
    root = shutil.copytree(library.root, tmp_path / "library")
    first = view(root, library.digests)
    (root / "math" / "adapter_model.safetensors").unlink()
    with pytest.raises(LibraryError, match="'math' cannot be used"):
        view(root, library.digests)
    second = view(root, library.digests, generation=3, before=first)
    assert second.examples == first.examples
    assert second.examples["math"] == tiny_library.EXAMPLES["math"]
