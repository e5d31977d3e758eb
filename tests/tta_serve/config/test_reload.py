"""What of a config may change while it is in force, and what is said of the rest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tta_serve.config.access import KeyConfig
from tta_serve.config.loading import load
from tta_serve.config.reload import (
    RELOADABLE,
    list_differences,
    reload_config,
    select_reloadable,
)
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError
from tta_serve.experiments.design.definition import Eligible

KEY = {"sha256": "0123456789abcdef" * 4, "tenant": "shop", "scopes": ["infer", "admin"]}


def demo(**more: Any) -> ServeConfig:
    data = yaml.safe_load((ROOT / "deploy/demo/serve.yaml").read_text(encoding="utf-8"))
    entries = {
        "number": {"sql": 0.5},
        "pair": {"sql": {"attention": 0.5, "mlp": 1}},
        "layers": {"sql": [0.5, 1.0], "math": {"attention": [0.0, 1.0], "mlp": 0.25}},
        "twin": {"twin": "t", "weights": {"sql": 0.5}},
    }
    own = {
        "library": data["library"] | {"entries": entries},
        "access": {"keys": {"shop": KEY}, "tenants": {"shop": {"experts": ["sql"]}}},
        "experiments": {"shadow": {"policy": "gate", "share": 0.5}},
        "store": {"url": "postgresql://tta:secret@db.example/tta"},
    }
    # Fewer policies inside the pass: each tenant has its own.
    own["policies"] = {n: p for n, p in data["policies"].items() if not n.startswith("gated")}
    return ServeConfig.model_validate(data | own | more)


def test_what_may_change_of_a_config_makes_the_same_config_again() -> None:
    config = demo()
    given = select_reloadable(config)
    assert reload_config(config, given) == config
    assert reload_config(config, {}) == config
    bare = demo(access={}, experiments={}, library={"path": "x"})
    assert reload_config(bare, given) != config, "the library's folder stays"
    assert list_differences(select_reloadable(reload_config(bare, given)), given) == []


def test_sets_are_written_in_one_order_whatever_process_writes_them() -> None:
    names = [f"name{i}" for i in range(12)]
    scopes = ["admin", "feedback", "infer", "metrics"]
    key = KeyConfig.model_validate(KEY | {"scopes": scopes})
    assert key.model_dump(mode="json")["scopes"] == scopes
    eligible = Eligible(models=frozenset(names), keys=None)
    assert eligible.model_dump(mode="json") == {
        "models": sorted(names),
        "headers": {},
        "keys": None,
    }
    assert isinstance(eligible.model_dump()["models"], frozenset)


def test_every_place_is_one_of_the_config() -> None:
    given = select_reloadable(demo())
    for place in RELOADABLE:
        section, _, name = place.partition(".")
        assert section in given
        assert not name or name in given[section]


def test_a_value_replaces_all_that_stood_there_and_nothing_else() -> None:
    config = demo()
    new = reload_config(
        config,
        {
            "policies": {"gate": {"type": "gate"}},
            "default_policy": "gate",
            "experiments": {"shadow": None},
        },
    )
    assert set(new.policies) == {"base", "gate"}
    assert new.server == config.server
    found = list_differences(select_reloadable(config), select_reloadable(new))
    assert "default_policy" in found
    assert "policies.retrieval" in found
    assert "experiments.shadow" in found
    assert not any(place.startswith(("access", "server", "policies.gate.")) for place in found)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"model": {"id": "other"}}, "model.id"),
        ({"server": {"port": 9}}, "server.port"),
        ({"server": {"max_queued": 9, "slots": 4}}, "server.slots"),
        ({"library": {"path": "/"}}, "library.path"),
        ({"library": None}, "library"),
        ({"server": {}}, "server"),
        ({"store": {"url": "sqlite:///x"}}, "store.url"),
        ({"polices": {}}, "polices"),
        ({"experiments": {"refresh_s": 1}}, "experiments.refresh_s"),
    ],
)
def test_a_place_that_cannot_change_is_named_with_those_that_can(
    given: dict[str, Any], place: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        reload_config(demo(), given)
    assert f"{place} cannot change" in str(refused.value)
    assert all(able in str(refused.value) for able in RELOADABLE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"server": {"max_queued": 0}}, "server.max_queued"),
        ({"policies": {"x": {"type": "nobody"}}, "default_policy": "x"}, "policies.x"),
        ({"policies": None}, "policies"),
        ({"default_policy": "nobody"}, "no policy 'nobody'"),
        ({"access": {"keys": {"a": {"sha256": "01234567***"}}}}, "access.keys.a.sha256"),
        ({"mix": {"grid": 0}}, "mix.grid"),
        ({"mix": {"grids": 1}}, "mix.grids"),
        ({"experiments": {"shadow": {"policy": "nobody", "share": 1}}}, "nobody"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        reload_config(demo(), given)
    assert said in str(refused.value)


def test_differences_are_named_by_their_places(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    text = "model: {id: demo, source: x}\nlibrary: {path: x}\ndefault_policy: base\n"
    file.write_text(text, encoding="utf-8")
    old = load(file, {})
    new = load(file, {"server.port": 9000, "model.engine_args": {"block_size": 32}})
    found = list_differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert found == ["model.engine_args.block_size", "server.port"]
