"""What is shown of a config: all that is in force, and no secret."""

import json
from typing import Any

import pytest

from tta_serve.config.effective import HIDDEN, describe_config
from tta_serve.config.sections import ServeConfig


def describe(**more: Any) -> dict[str, Any]:
    said = {
        "model": {"id": "demo", "source": "x", "engine_args": {"block_size": 32}},
        "library": {"path": "x"},
        "default_policy": "base",
    }
    shown = describe_config(ServeConfig.model_validate(said | more))
    json.dumps(shown, allow_nan=False)
    return shown


def test_defaults_are_in_it_and_what_is_no_secret_stays() -> None:
    shown = describe()
    assert shown["server"]["port"] == 8000
    assert shown["model"]["engine_args"] == {"block_size": 32}
    assert shown["store"] is None
    assert HIDDEN not in json.dumps(shown)


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_the_stores_password_is_hidden_and_its_place_is_not(driver: str) -> None:
    shown = describe(store={"url": f"{driver}://tta:p%40ss-w@db.example:5433/tta"})
    assert shown["store"]["url"] == f"{driver}://tta:{HIDDEN}@db.example:5433/tta"
    assert describe(store={"url": "sqlite:///tta.db"})["store"]["url"] == "sqlite:///tta.db"


def test_hashes_of_keys_are_cut() -> None:
    keys = {"shop": {"sha256": "0123456789abcdef" * 4}}
    assert (
        describe(access={"keys": keys})["access"]["keys"]["shop"]["sha256"] == f"01234567{HIDDEN}"
    )


def test_engine_arguments_that_hold_secrets_are_hidden_at_any_depth() -> None:
    given = {
        "hf_token": "hf_abc",
        "hf_overrides": {"rope": 1, "API_KEY": "k"},
        "load": [{"client_secret": "s"}, 3],
        "max_num_batched_tokens": 512,
        "tokenizer": "there",
    }
    model = {"id": "demo", "source": "x", "engine_args": given}
    assert describe(model=model)["model"]["engine_args"] == {
        "hf_token": HIDDEN,
        "hf_overrides": {"rope": 1, "API_KEY": HIDDEN},
        "load": [{"client_secret": HIDDEN}, 3],
        "max_num_batched_tokens": 512,
        "tokenizer": "there",
    }
