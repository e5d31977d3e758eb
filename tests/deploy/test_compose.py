"""The Compose files: by the specification's own schema, and that what they name is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from tests.conftest import ROOT

FOLDER = ROOT / "deploy/compose"
FILES = (FOLDER / "compose.yaml", FOLDER / "gpu.yaml", ROOT / "deploy/monitoring/compose.yaml")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_schema_is_kept(file: Path) -> None:
    schema = ["--builtin-schema", "vendor.compose-spec", str(file)]
    ran = CliRunner().invoke(check_jsonschema, schema)
    assert ran.exit_code == 0, ran.output


def test_what_is_named_is_there() -> None:
    compose = read(FOLDER / "compose.yaml")
    for file in compose["include"]:
        assert (FOLDER / file).resolve() in FILES
    build = compose["services"]["server"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    monitoring = read(FILES[2])["services"]
    for volume in (v for service in monitoring.values() for v in service["volumes"]):
        assert (FILES[2].parent / volume.split(":")[0]).exists(), volume
    assert set(read(FOLDER / "gpu.yaml")["services"]) <= set(compose["services"])


def test_the_server_is_the_one_that_prometheus_scrapes_and_visitors_ask() -> None:
    services = read(FOLDER / "compose.yaml")["services"]
    assert {service["network_mode"] for service in services.values()} == {"host"}
    scrape = read(ROOT / "deploy/monitoring/prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
    shell, flag, line = services["server"]["command"]
    assert (shell, flag) == ("sh", "-c")
    words = shlex.split(line.replace("$$", "$"))
    assert words[:2] == ["exec", "tta"]
    assert (ROOT / words[words.index("--config") + 1]).is_file()
    assert not re.search(r"--(host|port|insecure)", line)


def test_visitors_run_a_command_of_the_demo() -> None:
    from typer.testing import CliRunner as TyperRunner

    from deploy.demo.__main__ import app

    python, m, module, *rest = read(FOLDER / "compose.yaml")["services"]["visitors"]["command"]
    assert (python, m, module) == ("python", "-m", "deploy.demo")
    assert TyperRunner().invoke(app, [*rest, "--help"]).exit_code == 0
