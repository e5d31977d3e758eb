"""What a request sees of the library on disk, before and after its experts change."""

import asyncio
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import LibraryError
from adapters.files.delta_forms import DenseForm, LowRankForm
from adapters.library.entries import ENTRIES, Entry, write_entry
from adapters.library.library import Library
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policy import Context
from tests.factories import tiny_library
from tests.factories.counting_engine import CountingEngine
from tests.factories.twins import add_twins
from tta_serve.config.sections import PolicyConfig, ServeConfig
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.serving.experts.view import View, Views
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import narrow_context
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe


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


def test_an_exclusive_part_is_served_beside_its_shared_one_or_not_at_all(tmp_path: Path) -> None:
    library = Library.open(tiny_library.make_library(tmp_path))
    made = add_twins(library, ["math", "sql"])
    found = view(made.root, made.digests)
    assert found.catalog.rules.classes == {"math", "sql"}
    assert found.catalog.read_wish("t-sql", None).mix == Mix.of({"t-shared": 1, "t-sql": 1})
    parts = {name: made.digests[name] for name in made.parts}
    alone = view(made.root, parts, before=found)
    assert alone.catalog.rules.classes == {"t-math", "t-sql"}
    with pytest.raises(LibraryError, match="t-math is what math knows beyond t-shared"):
        view(made.root, {n: d for n, d in parts.items() if n != "t-shared"}, before=alone)

    # What is served stays a part, though the library has other versions of all by now.
    newer = add_twins(made, ["math", "sql"], rank=1)
    assert newer.digests["t-sql"] != made.digests["t-sql"]
    kept = view(made.root, parts, before=alone)
    assert kept.catalog.rules.shared == {"t-math": "t-shared", "t-sql": "t-shared"}
    with pytest.raises(LibraryError, match="beyond another t-shared"):
        view(made.root, {**parts, "t-shared": newer.digests["t-shared"]}, before=kept)


def test_a_view_knows_which_of_its_experts_are_dense_after_they_are_replaced(
    tmp_path: Path,
) -> None:
    library = Library.open(tiny_library.make_library(tmp_path))
    store = VersionStore(library.root)
    store.add("full", library.deltas("sql"), DenseForm(), About(source=Source("finetune")))
    digests = Library.open(library.root).digests
    first = view(library.root, digests)
    assert first.experts.forms == {"full": "dense"}
    assert first.router.probe.dense == {digests["full"]}
    store.add("full", library.deltas("sql"), LowRankForm(), About(source=Source("finetune")))
    assert view(library.root, digests, before=first).experts.forms == first.experts.forms
    assert view(library.root, library.digests, before=first).experts.forms == {}


def test_views_know_from_where_experts_act_and_inline_policies_do_not_choose_those(
    tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(library.root, tmp_path / "copy")
    config = tmp_path / "copy" / "math" / "adapter_config.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(known | {"alora_invocation_tokens": [3, 4]}), encoding="utf-8")

    found = view(tmp_path / "copy", library.digests)
    assert found.experts.invocations == dict(found.router.invocations) == {"math": (3, 4)}
    config.write_text("{", encoding="utf-8")
    kept = view(tmp_path / "copy", library.digests, before=found)
    assert kept.experts.invocations == {"math": (3, 4)}, "what is served stays as it is"

    context = Context(
        MixRules(frozenset({"math", "sql"}), 2),
        {},
        (),
        ViewProbe(CountingEngine(), {}, ProbeCache()),
        invocations={"math": (3, 4)},
    )
    for inline, classes in ((False, {"math", "sql"}), (True, {"sql"})):
        policy = PolicyConfig(type="retrieval", inline=inline)
        assert narrow_context("r", policy, context).rules.classes == classes
    assert "policy r never chooses math: it decides inside the pass" in caplog.text


POLICIES = {
    "learned": {"type": "learned_static", "options": {"entry": "both"}},
    "uniform": {"type": "static", "options": {"uniform": True}},
    "random": {"type": "random_control"},
    "near": {"type": "retrieval"},
}


def guarded(library: Path, tenants: dict[str, Any], **more: Any) -> ServeConfig:
    keys = {name: {"sha256": f"{i:064x}"} for i, name in enumerate(tenants)}
    return ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {"path": library, "entries": {"half": {"math": 0.5}, "sqls": {"sql": 1}}},
            "policies": POLICIES,
            "default_policy": "uniform",
            "access": {"keys": keys, "tenants": tenants},
            **more,
        }
    )


def make_views(config: ServeConfig, digests: dict[str, str]) -> View:
    views = Views(config, 2, CountingEngine(), ProbeCache(), Conversations(9, 9))
    return asyncio.run(views.make(1, digests, ("base",)))


def test_an_expert_that_may_be_used_only_alone_is_in_no_mix_with_others(tmp_path: Path) -> None:
    library = Library.open(tiny_library.make_library(tmp_path))
    about = About(source=Source("finetune"), alone=True, examples=("a", "b", "c", "d", "e"))
    VersionStore(library.root).add("own", library.deltas("sql"), LowRankForm(rank=1), about)
    opened = Library.open(library.root)
    assert (opened.classes, opened.alone) == (("math", "sql"), frozenset({"own"}))

    found = make_views(guarded(library.root, {}), opened.digests).catalog
    assert found.rules.classes == {"math", "sql"}
    assert found.read_wish("own", None).mix == Mix.of({"own": 1})
    alone = found.read_wish("demo", {"experts": {"own": 0.5, "math": 0.01}})
    assert alone.mix == Mix.of({"own": 0.5}), "the grid makes the other one 0"
    with pytest.raises(RequestError, match=r"'own' may be used only alone.*leave it out, or math"):
        found.read_wish("demo", {"experts": {"own": 0.5, "math": 0.5}})
    config = guarded(library.root, {})
    entries = config.library.model_copy(update={"entries": {"mixed": {"own": 0.5, "math": 0.5}}})
    with pytest.raises(ConfigError, match=r"library\.entries\.mixed: 'own' may be used only alone"):
        make_views(config.model_copy(update={"library": entries}), opened.digests)


def test_licences_decide_what_a_tenant_may_use(tmp_path: Path) -> None:
    library = Library.open(tiny_library.make_library(tmp_path))
    for name, licence in (("free", "Apache-2.0"), ("research", "CC-BY-NC-4.0")):
        about = About(source=Source("finetune"), licence=licence)
        VersionStore(library.root).add(name, library.deltas("sql"), LowRankForm(rank=1), about)
    wanted: dict[str, tuple[dict[str, Any], set[str]]] = {
        "all": ({}, {"free", "research", "math", "sql"}),
        "shop": ({"licences": ["apache-*", "mit"]}, {"free"}),
        "lab": ({"licences": ["cc-*", "unstated"]}, {"research", "math", "sql"}),
        "both": ({"licences": ["unstated"], "experts": ["sql", "free"]}, {"sql"}),
        "none": ({"licences": []}, set()),
    }
    config = guarded(
        library.root, {name: said for name, (said, _) in wanted.items()}, default_policy="base"
    )
    whole = make_views(config, Library.open(library.root).digests)
    for name, (_, experts) in wanted.items():
        assert whole.tenants[name].catalog.rules.names == experts
        entries = {"half": "math", "sqls": "sql"}
        kept = {entry for entry, expert in entries.items() if expert in experts}
        assert set(whole.tenants[name].catalog.entries) == kept


def test_a_tenant_sees_a_server_that_has_nothing_but_its_experts(library: Library) -> None:
    whole = make_views(
        guarded(library.root, {"a": {"experts": ["math"]}, "b": {}}), library.digests
    )
    a, b = whole.tenants["a"], whole.tenants["b"]
    assert (a.tenant, a.whole) == ("a", whole)
    assert a.catalog.models() == ["demo", "auto", "demo:base", "demo:math", "demo:half", "math"]
    assert b.catalog.models() == whole.catalog.models()
    assert dict(a.router.unusable) == {"learned": "it is not for them"}
    for wish in (
        {"experts": {"sql": 1.0}},
        {"experts": {"math": 1, "sql": 1}},
        {"entry": "both"},
        {"entry": "sqls"},
        {"policy": "nope"},
    ):
        with pytest.raises(RequestError) as refused:
            a.catalog.read_wish("demo", wish)
        given = json.dumps(wish)
        said = str(refused.value)
        assert not [n for n in ("sql", "both", "sqls") if n in said and n not in given], said
    for model in ("sql", "demo:sql", "demo:both"):
        with pytest.raises(RequestError) as refused:
            a.catalog.read_wish(model, None)
        assert refused.value.status == 404
        assert str(refused.value).count("sql") <= model.count("sql")


@pytest.mark.parametrize("policy", [*POLICIES, "base"])
def test_no_policy_gives_a_tenant_what_is_not_its_own(library: Library, policy: str) -> None:
    config = guarded(library.root, {"a": {"experts": ["math"]}, "b": {"experts": ["sql"]}})
    whole = make_views(config, library.digests)
    for name, own in (("a", {"math"}), ("b", {"sql"})):
        router = whole.tenants[name].router
        for i in range(40):
            [found] = asyncio.run(router.explain(Prompt(f"w{i} w{i + 1} w3"), [policy]))
            assert found.experts.keys() <= own
            others = {"math", "sql"} - own
            assert not [other for other in others if other in found.model_dump_json()]


def test_a_tenant_has_the_policies_and_entries_that_it_was_given(library: Library) -> None:
    config = guarded(library.root, {"a": {"policies": ["random"], "entries": ["half"]}})
    catalog = make_views(config, library.digests).tenants["a"].catalog
    assert set(catalog.policies) == {"base", "random"}
    assert catalog.default_policy == "random"
    assert catalog.entries.keys() == {"half"}
    assert catalog.rules.names == {"math", "sql"}


def test_a_tenant_whose_default_cannot_work_is_named(library: Library) -> None:
    config = guarded(library.root, {"a": {"experts": [], "policies": ["near"]}})
    with pytest.raises(RouterError, match="for tenant 'a': policy 'near'"):
        make_views(config, library.digests)
