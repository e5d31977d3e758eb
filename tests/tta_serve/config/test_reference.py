"""The page on the config, and the commands that show and check one."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.conftest import ROOT
from tests.factories.tiny_library import make_library
from tta_serve.cli.main import app
from tta_serve.config.reference import make_reference
from tta_serve.config.sections import ServeConfig


def run(*command: str) -> Result:
    return CliRunner().invoke(app, ["config", *command])


def test_the_page_in_the_repository_is_the_one_that_is_made() -> None:
    page = ROOT / "tta_serve/config/README.md"
    assert page.read_text(encoding="utf-8") == make_reference() == run("reference").output


def test_every_field_of_every_section_says_what_it_is() -> None:
    schema = ServeConfig.model_json_schema()
    silent = [
        f"{name}.{field}"
        for name, section in {"ServeConfig": schema, **schema["$defs"]}.items()
        for field, about in section["properties"].items()
        if not about.get("description")
    ]
    assert not silent
    assert json.loads(run("schema").output) == schema


@pytest.fixture
def config(tmp_path: Path) -> Path:
    library = make_library(tmp_path)
    file = tmp_path / "serve.yaml"
    file.write_text(
        f"model: {{id: demo, source: {library.parent / 'base'}}}\n"
        "library: {path: library}\npolicies: {near: {type: retrieval}}\ndefault_policy: near\n",
        encoding="utf-8",
    )
    return file


def test_what_is_shown_is_a_config_that_means_the_same(config: Path) -> None:
    shown = yaml.safe_load(run("show", str(config)).output)
    assert shown["server"]["port"] == 8000
    assert shown["library"]["path"] == str(config.parent / "library")
    again = config.parent / "again.yaml"
    again.write_text(yaml.safe_dump(shown), encoding="utf-8")
    assert yaml.safe_load(run("show", str(again)).output) == shown


def test_a_check_finds_what_a_start_would(config: Path) -> None:
    result = run("check", str(config))
    assert result.exit_code == 0
    assert "2 experts (math, sql), 2 policies, default near" in result.output
    for old, new, says in (
        ("near: {type", "far: {type", "there is no policy 'near'"),
        ("path: library", "path: nowhere", "nowhere"),
        ("library: {path: library}", "library: {path: library, entries: {a: {nope: 1}}}", "nope"),
    ):
        wrong = config.parent / "wrong.yaml"
        wrong.write_text(config.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        result = run("check", str(wrong))
        assert result.exit_code != 0
        assert says in str(result.exception)
