"""The application on a Ray cluster that others have started, by Ray's own commands.

Its nodes are on this machine, each with the CPUs of one replica of a tiny base. The tests are long,
and each takes the cluster as the one before has left it.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.factories.load import CHAT, Load, body
from tests.factories.ray_cluster import RayCluster, ray_cluster
from tests.factories.tiny_service import write_service

pytestmark = pytest.mark.long

MIDDLEWARES = "tta_serve.serving.http.proxy_middleware:middlewares"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_service(tmp_path_factory.mktemp("service"), server={"drain_s": 60}))


@pytest.fixture(scope="module")
def cluster(config: str) -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with ray_cluster(folder, RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=MIDDLEWARES) as cluster:
            cluster.start_worker()
            cluster.deploy(config=config, **{"server.replicas": 2})
            cluster.wait(lambda: len(cluster.replicas()) == 2)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_rays_own_proxy_answers_streams_and_passes_failures_on(cluster: RayCluster) -> None:
    with httpx.Client(base_url=cluster.url, timeout=100) as client:
        assert client.get("/readyz").text == "ready\n"
        whole = client.post(CHAT, json=body("w5 w6"), headers={"x-request-id": "mine"})
        assert whole.status_code == 200, whole.text
        assert whole.headers.get_list("x-request-id") == ["mine"]
        assert whole.json()["merge"]["experts"] == {"small": 1.0}
        began, times = time.monotonic(), []
        asks = body("w5 w6", stream=True, max_tokens=100, ignore_eos=True)
        with client.stream("POST", CHAT, json=asks) as answer:
            for line in answer.iter_lines():
                if line:
                    times.append(time.monotonic() - began)
                    last = line
        assert last == "data: [DONE]"
        assert times[0] < times[-1] / 2, "it comes in parts"

        unknown = client.post(CHAT, json={**body("w5"), "model": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        impatient = {"x-request-timeout-seconds": "0.001"}
        assert client.post(CHAT, json=body("w5 w7"), headers=impatient).status_code == 200


def count_requests(url: str) -> Counter[str]:
    """Return how many requests each replica has answered."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == "tta_requests_total":
                found[sample.labels["replica"]] += int(sample.value)
    return found


def test_both_nodes_take_part_and_a_session_stays_where_it_is(cluster: RayCluster) -> None:
    assert len(set(cluster.replicas().values())) == 2

    def answering(sessions: list[str]) -> int:
        before = count_requests(cluster.url)
        for session in sessions:
            headers = {"x-session-id": session}
            httpx.post(cluster.url + CHAT, json=body("w8"), headers=headers, timeout=60)
        after = count_requests(cluster.url)
        assert after.total() == before.total() + len(sessions)
        return len(after - before)

    assert answering([f"s{i}" for i in range(16)]) == 2
    assert answering(["s1"] * 6) == 1


def test_a_rolling_restart_fails_no_request(cluster: RayCluster, config: str) -> None:
    before = set(cluster.replicas())
    load = Load(cluster.url, 4)
    with load.running():
        cluster.deploy(config=config, restarted_at="now", **{"server.replicas": 2})
        took_s = cluster.wait(lambda: len(now := set(cluster.replicas())) == 2 and not now & before)
        time.sleep(5)
    print(f"restarted in {took_s:.0f} s: {dict(load.outcomes)}, slowest {load.slowest_s:.1f} s")
    assert load.failed == 0, load.outcomes
    assert load.outcomes["answered"] > 20


def test_a_node_that_is_lost_fails_its_own_requests_alone(cluster: RayCluster) -> None:
    load = Load(cluster.url, 4)
    with load.running():
        time.sleep(5)
        cluster.kill(-1)
        time.sleep(40)
        failed = load.failed
        time.sleep(15)
    print(f"after a node was lost: {dict(load.outcomes)}, slowest {load.slowest_s:.1f} s")
    assert load.failed == failed, "the other node answers all by then"
    assert load.outcomes["answered"] > 20
    assert load.slowest_s < 60
    cluster.start_worker()
    took_s = cluster.wait(lambda: len(cluster.replicas()) == 2)
    print(f"two replicas again after {took_s:.0f} s")


def test_replicas_come_and_go_with_the_load(cluster: RayCluster, config: str) -> None:
    scaling = {"max_replicas": 2, "target_requests": 1, "up_delay_s": 2, "down_delay_s": 5}
    before = set(cluster.replicas())
    cluster.deploy(config=config, **{"server.autoscaling": scaling})
    cluster.wait(lambda: len(now := set(cluster.replicas())) == 1 and not now & before)
    load = Load(cluster.url, 4)
    with load.running():
        up_s = cluster.wait(lambda: len(cluster.replicas()) == 2)
    down_s = cluster.wait(lambda: len(cluster.replicas()) == 1)
    print(f"1 -> 2 in {up_s:.0f} s, 2 -> 1 in {down_s:.0f} s: {dict(load.outcomes)}")
    assert load.failed == 0, load.outcomes
