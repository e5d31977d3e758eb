"""What Ray's own commands make of the application, without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.conftest import ROOT
from tests.factories.tiny_service import write_service
from tta_serve.exceptions import ConfigError

EXAMPLE = ROOT / "deploy/ray/serve.yaml"


def test_the_example_is_what_serve_build_prints_of_the_demo(base: Path, tmp_path: Path) -> None:
    config, made = tmp_path / "serve.yaml", tmp_path / "built.yaml"
    demo = yaml.safe_load((ROOT / "deploy/demo/serve.yaml").read_text(encoding="utf-8"))
    demo["model"] |= {"source": str(base), "chat_template": None}
    demo["library"]["path"] = str(ROOT / "deploy/demo/experts")
    config.write_text(yaml.safe_dump(demo), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "serve"), "build", "tta_serve.serving.app:app"]
    environment = os.environ | {"TTA_CONFIG": str(config), "TTA__ACCESS__INSECURE": "true"}
    subprocess.run([*command, "-o", made], check=True, env=environment, capture_output=True)
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    # As data: the order of a bundle's resources differs from run to run.
    assert example == yaml.safe_load(made.read_text(encoding="utf-8")), "deploy/README.md makes it"
    assert ServeDeploySchema.model_validate(example)


def test_a_cluster_is_open_to_nobody_without_a_key_and_unless_told_so(tmp_path: Path) -> None:
    from tta_serve.serving.app import build

    config = write_service(tmp_path, access={})
    with pytest.raises(ConfigError, match=r"no keys.*tta keys new"):
        build({"config": str(config)})
    assert build({"config": str(config), "access.insecure": "true"})


def test_arguments_go_on_top_of_the_config_as_yaml(tmp_path: Path) -> None:
    from tta_serve.serving.app import build

    config = write_service(tmp_path)
    args = {"config": str(config), "server.autoscaling": "{max_replicas: 3, target_cache: 0.8}"}
    scaling = build(args)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert scaling.policy.policy_kwargs == {"requests": 16, "cache": 0.8}
    assert build({"config": str(config), "restarted_at": "noon"})
    with pytest.raises(ConfigError, match=r"server\.slot"):
        build({"config": str(config), "server.slot": "3"})
