"""A library without example prompts learns what its experts are for from who pins them."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.demo.tasks import TASKS
from deploy.demo.voices import SPEAKERS, read_spoken
from tests.conftest import ROOT
from tests.e2e.conftest import ADMIN_KEY, Demo, serving
from tta_serve.evaluation.local_server import find_free_port
from tta_serve.serving.experts.pinned_requests import PINNED_FILE

# A server of its own that is taught, and one that is started on what it has learned.
pytestmark = pytest.mark.long

PINS, NEW = 12, 6
FORCE_LIMIT_S = 60
SPOKEN = {name: [one.prompt for one in read_spoken(SPEAKERS) if one.task == name] for name in TASKS}
EVERYDAY = [one.prompt for one in read_spoken(SPEAKERS) if one.task is None][:12]


@pytest.fixture(scope="module")
def config(demo_experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of the demo's experts, of which nobody says what they are for."""
    folder = tmp_path_factory.mktemp("pinned")
    shutil.copytree(demo_experts, folder / "experts")
    for file in (folder / "experts").glob("*/examples.txt"):
        file.unlink()
    demo = yaml.safe_load((ROOT / "deploy/demo/serve.yaml").read_text(encoding="utf-8"))
    template = str(ROOT / "deploy/demo" / demo["model"]["chat_template"])
    said = {
        "model": demo["model"] | {"chat_template": template},
        "library": {"path": str(folder / "experts"), "pinned": {}},
        "policies": {
            "retrieval": {"type": "retrieval"},
            "inside": {"type": "retrieval", "inline": True},
        },
        "default_policy": "retrieval",
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(said), encoding="utf-8")
    return file


def start(config: Path, base: Path, log: str) -> Any:
    folder = config.parent
    port = find_free_port()
    return serving(config, port, folder / log, folder / "experts", "--model", str(base))


@pytest.fixture(scope="module")
def taught(config: Path, base: Path) -> Iterator[Demo]:
    """A server at whose experts people have pinned some requests, started once more since."""
    with start(config, base, "first") as server:
        assert {ask(server, SPOKEN[name][0]) for name in TASKS} == {""}, "nothing is known yet"
        for number in range(PINS):
            for name in TASKS:
                assert ask(server, SPOKEN[name][number], f"smollm2:{name}") == name
        talk = [{"x-session-id": "one long talk"}] * 20
        for number, headers in enumerate(talk):
            ask(server, SPOKEN["sql"][PINS + number], "smollm2:sql", headers)
        known = wait_until_known(server)
        assert all(8 <= count <= PINS + 1 for count in known.values()), known
        assert find_share(server, "retrieval") >= 0.8
    with start(config, base, "second") as server:
        yield server


def ask(
    server: Demo,
    prompt: str,
    model: str = "smollm2",
    headers: dict[str, str] | None = None,
    **more: Any,
) -> str:
    """Return the expert that answered most, empty for the base."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1,
        **more,
    }
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120
    )
    experts: dict[str, float] = answer.raise_for_status().json()["merge"]["experts"]
    return max(experts, key=lambda name: experts[name], default="")


def explain(server: Demo) -> dict[str, dict[str, Any]]:
    """Return what is known of each expert."""
    found = httpx.post(
        f"{server.url}/admin/policies/explain",
        json={"prompt": "Hello", "policies": ["retrieval"]},
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
        timeout=120,
    )
    return {one["expert"]: one for one in found.raise_for_status().json()["examples"]}


def wait_until_known(server: Demo) -> dict[str, int]:
    """Wait until policies know enough of every expert, and return how many requests they know."""
    end = time.monotonic() + FORCE_LIMIT_S
    while True:
        known = {name: int(one["pinned"]) for name, one in explain(server).items()}
        if min(known.values()) >= 8:
            return known
        assert time.monotonic() < end, known
        time.sleep(1)


def find_share(server: Demo, policy: str) -> float:
    """Return which share of new prompts goes to the right expert."""
    asked = [(name, text) for name in TASKS for text in SPOKEN[name][-NEW:]]
    merge = {"policy": policy}
    right = [ask(server, text, merge=merge) == name for name, text in asked]
    return sum(right) / len(right)


@pytest.mark.parametrize("policy", ["retrieval", "inside"])
def test_what_people_pinned_routes_what_others_ask_after_a_restart(
    taught: Demo, policy: str
) -> None:
    assert find_share(taught, policy) >= 0.8
    left = [ask(taught, text, merge={"policy": policy}) == "" for text in EVERYDAY]
    assert sum(left) / len(left) >= 0.5


def test_the_default_policy_and_the_log_say_what_is_in_force(taught: Demo) -> None:
    right = [ask(taught, SPOKEN[name][-1]) == name for name in TASKS]
    assert sum(right) >= 5
    (said,) = [line for line in taught.lines if line["event"] == "serving"]
    assert said["examples"].keys() == TASKS.keys()
    assert all("pinned requests" in says for says in said["examples"].values()), said
    assert explain(taught)["sql"]["says"] == said["examples"]["sql"]
    text = httpx.get(f"{taught.url}/metrics", timeout=60).text
    assert text.count("tta_pinned_requests{") == len(TASKS)


def test_what_is_kept_is_small_and_no_text(taught: Demo) -> None:
    file = taught.experts / PINNED_FILE
    content = file.read_bytes()
    assert len(content) < 1_000_000
    assert not any(SPOKEN[name][0][:24].encode() in content for name in TASKS)
