"""The RayService: its Serve config by Ray, its config by ours, and that its parts fit."""

from functools import cache
from typing import Any

import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.conftest import ROOT
from tta_serve.config.loading import load

FILE = ROOT / "deploy/kubernetes/rayservice.yaml"


@cache
def documents() -> dict[str, dict[str, Any]]:
    text = FILE.read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def groups() -> list[dict[str, Any]]:
    cluster = documents()["RayService"]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups()]


def application() -> dict[str, Any]:
    said = yaml.safe_load(documents()["RayService"]["spec"]["serveConfigV2"])
    (found,) = ServeDeploySchema.model_validate(said).model_dump()["applications"]
    return dict(found)


def test_ray_takes_its_serve_config_and_is_of_the_version_that_is_locked() -> None:
    from tta_serve.serving import app

    found = application()
    assert found["route_prefix"] == "/"
    module, _, name = found["import_path"].partition(":")
    assert (module, getattr(app, name)) == (app.__name__, app.build)
    assert documents()["RayService"]["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_the_config_is_one_of_ours_with_keys_and_as_many_workers_as_replicas(
    tmp_path: Any,
) -> None:
    place = tmp_path / "serve.yaml"
    place.write_text(documents()["ConfigMap"]["data"]["serve.yaml"], encoding="utf-8")
    config = load(place, {}, {})
    assert config.access.keys
    scaling = config.server.autoscaling
    assert scaling is not None
    _, workers = groups()
    assert workers["minReplicas"] == workers["replicas"] == scaling.min_replicas
    assert workers["maxReplicas"] == scaling.max_replicas
    grace_s = pods()[1]["terminationGracePeriodSeconds"]
    assert grace_s > config.server.drain_s + 10, "Ray's own grace is ten seconds more"


def test_its_names_are_of_each_other() -> None:
    config = application()["args"]["config"]
    named = documents()["ConfigMap"]["metadata"]["name"]
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/etc/tta"]]["configMap"]["name"] == named
        assert config == "/etc/tta/serve.yaml"
        assert volumes[mounts["/run/secrets/tta"]]["secret"]
        for variable in container["env"]:
            assert variable["value"].startswith("/run/secrets/tta/"), "a file of the secret"


def test_a_pod_has_no_root_and_bounds_and_a_replica_has_a_worker_to_itself() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    head, worker = groups()
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["rayStartParams"]["num-cpus"] == "2"
    (container,) = pods()[1]["containers"]
    assert "/readyz" in container["readinessProbe"]["exec"]["command"][-1]
