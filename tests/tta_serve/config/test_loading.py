"""The config: what it accepts, and how it refuses."""

from pathlib import Path
from typing import Any

import pytest

from tta_serve.config.loading import load, read_admin_key
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError

GOOD = """
model: {id: demo, source: some/base}
library: {path: experts}
policies: {retrieval: {type: retrieval}}
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_paths_are_relative_to_the_file_and_options_go_on_top(tmp_path: Path) -> None:
    config = load(
        written(tmp_path, GOOD),
        {"server.port": 9001, "server.host": None, "default_policy": "base"},
    )
    assert config.library.path == tmp_path / "experts"
    assert (config.server.host, config.server.port) == ("127.0.0.1", 9001)
    assert config.default_policy == "base"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "servr: {}\n", "servr: Extra inputs"),
        (GOOD + "server: {prot: 1}\n", "server.prot: Extra inputs"),
        (GOOD + "default_policy: nope\n", "policies has: base, retrieval"),
        (GOOD.replace("type: retrieval", "type: magic"), "there are: static, retrieval"),
        (GOOD.replace("type: retrieval", "type: retrieval, options: {tpo: 1}"), "tpo"),
        (GOOD.replace("type: retrieval", "type: retrieval, fallback: nope"), "no policy 'nope'"),
        (
            GOOD.replace("{retrieval:", "{base: {type: retrieval}, retrieval:"),
            "policies.base is the base model itself",
        ),
        (GOOD.replace("id: demo", "id: 'a:b'"), "model.id"),
        ("model: [", "not YAML"),
        ("just text", "must hold sections"),
    ],
)
def test_a_wrong_config_stops_the_start_and_names_the_place(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, text), {})
    assert says in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "nowhere.yaml", {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"enable_lora": False}, "engine_args.*enable_lora: tta-serve sets it itself"),
        ({"max_num_seqs": 4}, "it is server.slots"),
        ({"tool_call_parser": "hermes"}, "it is model.tool_parser"),
        (
            {"kv_transfer_config": {"kv_connector": "NixlConnector"}},
            "NixlConnector.*OffloadingConnector",
        ),
        ({"kv_transfer_config": None}, "these key it by mix"),
    ],
)
def test_engine_args_that_would_break_a_promise_are_refused_by_name(
    arguments: dict[str, Any], says: str
) -> None:
    model = {"id": "demo", "source": "x", "engine_args": arguments}
    with pytest.raises(ValueError, match=f"(?s){says}"):
        ServeConfig.model_validate(
            {
                "model": model,
                "library": {"path": "x"},
                "policies": {"retrieval": {"type": "retrieval"}},
            }
        )


def test_a_connector_that_keys_caches_by_mix_may_be_used() -> None:
    model = {
        "id": "d",
        "source": "x",
        "engine_args": {"kv_transfer_config": {"kv_connector": "OffloadingConnector"}},
    }
    config = {
        "model": model,
        "library": {"path": "x"},
        "policies": {"retrieval": {"type": "retrieval"}},
    }
    assert ServeConfig.model_validate(config).model.engine_args


KEYS = f"access: {{keys: {{shop: {{sha256: {'a' * 64}}}}}, tenants: {{shop: {{}}}}}}\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])
def test_other_machines_are_let_in_with_keys_or_by_name_of_the_risk(
    tmp_path: Path, host: str
) -> None:
    for open_to in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        load(written(tmp_path, GOOD), {"server.host": open_to})
    with pytest.raises(ConfigError, match=f"server.host {host} lets other machines in") as error:
        load(written(tmp_path, GOOD), {"server.host": host})
    assert "tta keys new" in str(error.value)
    load(written(tmp_path, GOOD), {"server.host": host, "access.insecure": True})
    load(written(tmp_path, GOOD + KEYS), {"server.host": host})
    managed = {"server.admin_port": 9001, "server.admin_host": host}
    with pytest.raises(ConfigError, match=f"server.admin_host {host} lets other machines in"):
        load(written(tmp_path, GOOD), managed)
    load(written(tmp_path, GOOD + KEYS), managed)


@pytest.mark.parametrize(
    ("tenant", "says"),
    [
        ("policies: [magic]", "access.tenants.shop.policies: there is no policy magic"),
        ("policies: []", "access.tenants.shop.policies: name at least one"),
        ("expert: [sql]", "access.tenants.shop.expert: Extra inputs"),
        ("policies: [retrieval]", "retrieval falls back to other: name that too"),
    ],
)
def test_what_a_tenant_cannot_ask_for_is_named(tmp_path: Path, tenant: str, says: str) -> None:
    text = GOOD.replace(
        "{retrieval: {type", "{other: {type: static}, retrieval: {fallback: other, type"
    )
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, text + KEYS.replace("shop: {}}", f"shop: {{{tenant}}}}}")), {})
    assert says in str(error.value)


def test_more_policies_inside_the_pass_than_an_engine_keeps_are_refused(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(16)]
    keys = ", ".join(f"{name}: {{sha256: '{i:064}'}}" for i, name in enumerate(names))
    tenants = ", ".join(f"{name}: {{}}" for name in names)
    text = GOOD.replace("type: retrieval", "type: retrieval, inline: true")
    with pytest.raises(ConfigError, match="1 inline policies for each of 16 tenants"):
        load(written(tmp_path, f"{text}access: {{keys: {{{keys}}}, tenants: {{{tenants}}}}}\n"), {})


def test_the_environment_goes_on_top_of_the_file_and_options_on_top_of_both(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sqlite:///x.db\n", encoding="utf-8")
    environment = {
        "TTA__SERVER__PORT": "9000",
        "TTA__SERVER__SLOTS": "3",
        "TTA__POLICIES__RETRIEVAL__OPTIONS": "{mode: top1}",
        "TTA__STORE__URL__FILE": str(secret),
        "TTA__LIBRARY__READINGS": "null",
        "TTA_ADMIN_KEY": "k",
        "tta__server__port": "1",
    }
    config = load(written(tmp_path, GOOD), {"server.slots": 4}, environment)
    assert (config.server.port, config.server.slots) == (9000, 4)
    assert config.policies["retrieval"].options == {"mode": "top1"}
    assert config.store is not None
    assert config.store.url == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TTA__SERVR__PORT", "1", "with servr.port of the environment, cannot be used"),
        ("TTA__SERVER__PORT", "many", "server.port: Input should be a valid integer"),
        ("TTA__SERVER__PORT", "[", "TTA__SERVER__PORT in the environment is not YAML"),
        ("TTA__MODEL__ID__NAME", "x", "id is no section"),
        ("TTA__STORE__URL__FILE", "/not/there", "/not/there of the environment cannot be read"),
    ],
)
def test_what_the_environment_cannot_say_is_named(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, GOOD), {}, {name: value})
    assert says in str(error.value)


def test_the_key_of_management_may_come_from_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, "secret \n")
    assert read_admin_key({}) is None
    assert read_admin_key({"TTA_ADMIN_KEY": "k"}) == "k"
    assert read_admin_key({"TTA_ADMIN_KEY_FILE": str(file), "TTA_ADMIN_KEY": "k"}) == "secret"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_admin_key({"TTA_ADMIN_KEY_FILE": str(tmp_path / "none")})
