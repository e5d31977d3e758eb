"""The config: what it accepts, and how it refuses."""

from pathlib import Path
from typing import Any

import pytest

from tta_serve.config import ServeConfig, load
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
