"""The committed experts: what PEFT, vLLM and the router will read."""

from __future__ import annotations

import json
import re

import pytest
from safetensors import safe_open

from deploy.demo.model import EXPERTS
from deploy.demo.results import read_results
from deploy.demo.tasks import TASKS
from deploy.demo.train import FIRST_LAYER, ROUTER_EXAMPLES

TARGETS = {"orders": 0.95, "sql": 0.95, "math": 0.85, "triage": 0.95, "dates": 0.9, "redact": 0.95}
NAMED = pytest.mark.parametrize("name", list(TASKS))


@NAMED
def test_adapter_is_small_rounded_and_above_the_router(name: str) -> None:
    path = EXPERTS / name / "adapter_model.safetensors"
    assert path.stat().st_size < 5_000_000
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        assert {str(file.get_slice(key).get_dtype()) for key in keys} == {"F16"}
    found = [re.search(r"layers\.(\d+)\.", key) for key in keys]
    layers = [int(match[1]) for match in found if match]
    assert len(layers) == len(keys)
    assert min(layers) == FIRST_LAYER
    assert len(layers) == 2 * 7 * len(set(layers))


@NAMED
def test_config_names_no_local_path(name: str) -> None:
    text = (EXPERTS / name / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (8, 16, 7)
    assert not re.search(r'"(/|~)', text)


@NAMED
def test_router_examples_are_training_prompts(name: str) -> None:
    lines = (EXPERTS / name / "examples.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [
        example.prompt for example in TASKS[name].examples("train", ROUTER_EXAMPLES, 0)
    ]


@NAMED
def test_results_meet_the_targets(name: str) -> None:
    result = read_results()[name]
    assert result["n"] >= 100
    assert result["base"] <= 0.05
    assert result["expert"] >= TARGETS[name]
    assert result["steps"] > 0
    assert name in result["command"]
