"""Two tenants on one server: keys, budgets, and nothing that one learns of the other."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e.conftest import ADMIN_KEY, Demo, serving
from tta_serve.evaluation.local_server import find_free_port

REQUESTS = int(os.environ.get("TTA_TENANT_REQUESTS", "120"))
OWN = {"a": {"sql", "math"}, "b": {"dates", "orders", "redact", "triage"}}
KEYS: dict[str, dict[str, Any]] = {
    "a": {"tenant": "a"},
    "b": {"tenant": "b", "scopes": ["infer", "feedback"]},
    "busy": {"tenant": "a", "requests_per_minute": 2},
    "scraper": {"scopes": ["metrics"]},
}
QUESTIONS = (
    "Table staff(name, salary, dept). Which name in staff have salary above 70?",
    "Tom has 12 apples and buys 7 more. How many apples does he have?",
    "The meeting is on the third of May 2024.",
    "Please call Anna Schmidt at 555-0134.",
    "My invoice is wrong and I want my money back!",
    "Write a poem on rain.",
)


@pytest.fixture(scope="module")
def server(
    base: Path, demo_experts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("access")
    demo = yaml.safe_load((ROOT / "deploy/demo/serve.yaml").read_text(encoding="utf-8"))
    wanted = ("retrieval", "gate", "inline", "arrow", "gated", "uniform", "learned")
    keys = {
        label: {"sha256": hashlib.sha256(label.encode()).hexdigest()} | about
        for label, about in KEYS.items()
    }
    tenants = {name: {"experts": sorted(own)} for name, own in OWN.items()}
    template = str(ROOT / "deploy/demo" / demo["model"]["chat_template"])
    config = demo | {
        "model": demo["model"] | {"chat_template": template},
        "library": demo["library"] | {"path": str(demo_experts)},
        "policies": {name: demo["policies"][name] for name in wanted},
        "access": {"keys": keys, "tenants": tenants},
        "server": {"admin_port": find_free_port()},
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with serving(
        file, find_free_port(), folder / "log", demo_experts, "--model", str(base)
    ) as running:
        yield running


def find_admin_url(server: Demo) -> str:
    config = yaml.safe_load((server.log.parent / "serve.yaml").read_text(encoding="utf-8"))
    return f"http://127.0.0.1:{config['server']['admin_port']}"


@cache
def find_client(url: str) -> httpx.Client:
    """Return the client of a server; making one for each request would take longer than it does."""
    return httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None))


def ask(server: Demo, key: str | None, path: str = "/v1/chat/completions", **body: Any) -> Any:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    client = find_client(server.url)
    if body:
        return client.post(path, json=body, headers=headers)
    return client.get(path, headers=headers)


def chat(server: Demo, key: str | None, question: str = QUESTIONS[0], **more: Any) -> Any:
    wanted: dict[str, Any] = {"model": "smollm2", "max_tokens": 4, "temperature": 0}
    messages = [{"role": "user", "content": question}]
    return ask(server, key, **wanted | {"messages": messages} | more)


def test_each_key_goes_where_it_may(server: Demo) -> None:
    assert ask(server, None, "/readyz").status_code == 200
    for key in (None, "nobody"):
        refused = chat(server, key)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert chat(server, "scraper").status_code == 403
    assert ask(server, "scraper", "/metrics").status_code == 200
    assert ask(server, "a", "/metrics").status_code == 403
    assert ask(server, "a", "/v1/feedback", request_id="x", value=1).status_code == 403


def test_management_has_a_port_of_its_own(server: Demo) -> None:
    for key in (None, "a", ADMIN_KEY):
        assert ask(server, key, "/admin/policies").status_code == 404
        assert ask(server, key, "/v1/load_lora_adapter", lora_name="x").status_code == 404
    for key, status in ((None, 401), ("a", 403), (ADMIN_KEY, 200)):
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.get(f"{find_admin_url(server)}/admin/policies", headers=headers)
        assert answer.status_code == status
    assert httpx.get(f"{find_admin_url(server)}/readyz", timeout=60).status_code == 200


def test_each_tenant_has_its_own_models(server: Demo) -> None:
    for tenant, own in OWN.items():
        found = {row["id"] for row in ask(server, tenant, "/v1/models").json()["data"]}
        assert {name for name in found if ":" not in name} == {"smollm2", "auto", *own}
        for other in set.union(*OWN.values()) - own:
            assert chat(server, tenant, model=other).status_code == 404
            assert chat(server, tenant, merge={"experts": {other: 1.0}}).status_code == 400


def test_a_budget_is_kept_and_says_when_to_come_back(server: Demo) -> None:
    answers = [chat(server, "busy") for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 120
    assert "2 requests a minute" in answers[2].json()["error"]["message"]
    scraped = ask(server, "scraper", "/metrics").text
    assert re.search(r'tta_refused_total\{key="busy",.*why="requests"\} 1', scraped)
    for outcome in ("ok", "client_error"):
        series = rf'tta_tenant_requests_total\{{outcome="{outcome}",.*tenant="a"\}} [1-9]'
        assert re.search(series, scraped)
    assert re.search(r'tta_tenant_tokens_total\{kind="completion",.*tenant="a"\} [1-9]', scraped)


def test_a_request_that_would_wait_too_long_is_turned_away(server: Demo) -> None:
    """Of many at once, with little time each; the server learns from the first ones."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Count."}]}

    def send(_: int) -> int:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={**body, "max_tokens": 200, "ignore_eos": True},
            headers={"authorization": "Bearer a", "x-request-timeout": "2"},
            timeout=60,
        )
        if answer.status_code == 503:
            assert "the server is busy" in answer.json()["error"]["message"]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        return answer.status_code

    with ThreadPoolExecutor(120) as threads:
        found = Counter(threads.map(send, range(240)))
    assert found.keys() <= {200, 408, 503}
    assert found[503] > 0, "what comes late is not begun"
    assert chat(server, "a").status_code == 200


def test_what_one_has_cached_is_no_faster_for_the_other(server: Demo) -> None:
    def count_hits() -> float:
        text = ask(server, "scraper", "/metrics").text
        rows = re.findall(r"^vllm:prefix_cache_hits_total\{.*?\} (\S+)", text, re.M)
        return sum(map(float, rows))

    def hits_of(key: str) -> float:
        before = count_hits()
        assert chat(server, key, long, merge={"policy": "base"}).status_code == 200
        return count_hits() - before

    long = "Please repeat after me what I say now, word by word: " + "all good things, " * 60
    assert hits_of("a") == 0
    assert hits_of("a") > 100
    assert hits_of("b") == 0, "the same prompt, of another tenant"
    assert hits_of("b") > 100


def test_the_config_changes_while_requests_run_and_none_of_them_fails(server: Demo) -> None:
    stop = threading.Event()

    def go_on_asking(key: str) -> list[int]:
        codes = []
        while not stop.is_set():
            codes.append(chat(server, key).status_code)
        return codes

    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with (
        httpx.Client(base_url=find_admin_url(server), headers=headers, timeout=300) as admin,
        ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(go_on_asking, key) for key in "aabb"]
        try:
            _check_refusals(server, admin)
            _check_reload_and_rollback(server, admin)
        finally:
            stop.set()
        codes = Counter(code for one in running for code in one.result(300))
    assert codes.keys() == {200}
    assert codes[200] > 8


def _check_refusals(server: Demo, admin: httpx.Client) -> None:
    """What cannot be done changes nothing."""
    lost = {"type": "learned_static", "options": {"entry": "lost"}}
    refusals: list[tuple[Any, str]] = [
        ({"policies": {"x": {"type": "nobody"}}, "default_policy": "x"}, "policies.x"),
        ({"policies": {"x": lost}, "default_policy": "x"}, "lost"),
        ({"server": {"port": 1}}, "server.port cannot change"),
        ({"library": {"entries": {"lost": {"nobody": 1}}}}, "library.entries.lost"),
        ([], "JSON object"),
    ]
    for given, said in refusals:
        refused = admin.put("/admin/config", json=given)
        assert refused.status_code == 400, refused.text
        assert said in refused.json()["error"]["message"]
    dry = admin.put("/admin/config", params={"dry_run": True}, json={"default_policy": "gate"})
    assert dry.json() == {"version": 1, "changed": ["default_policy"]}
    assert chat(server, "a").json()["merge"]["policy"] == "inline"


def _check_reload_and_rollback(server: Demo, admin: httpx.Client) -> None:
    """A file's changes are made, and taken back."""
    file = server.log.parent / "serve.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    keys = {label: key for label, key in config["access"]["keys"].items() if label != "busy"}
    keys["new"] = {"sha256": hashlib.sha256(b"new").hexdigest(), "tenant": "b"}
    more = {
        "access": config["access"] | {"keys": keys},
        "default_policy": "gate",
        "server": config["server"] | {"max_queued": 300, "slots": 3},
    }
    file.write_text(yaml.safe_dump(config | more), encoding="utf-8")

    changed = ["access.keys.busy", "access.keys.new", "default_policy", "server.max_queued"]
    url = find_admin_url(server)
    assert _run_tta("config", "reload", str(file), "--url", url) == {
        "version": 2,
        "changed": changed,
    }
    assert chat(server, "a").json()["merge"]["policy"] == "gate"
    assert chat(server, "busy").status_code == 401
    assert set(chat(server, "new").json()["merge"]["experts"]) <= OWN["b"]
    assert admin.get("/admin/config").json()["server"]["max_queued"] == 300
    stale = admin.put("/admin/config", params={"replaces": 1}, json={})
    assert stale.status_code == 409

    assert _run_tta("config", "rollback", "--url", url) == {"version": 3, "changed": changed}
    assert chat(server, "new").status_code == 401
    assert chat(server, "a").json()["merge"]["policy"] == "inline"
    history = admin.get("/admin/config/history").json()["versions"]
    by = [(one["version"], one["by"]) for one in history]
    assert by == [(1, "the start"), (2, "admin"), (3, "admin")]
    assert admin.post("/admin/config/rollback", json={"to": 9}).status_code == 404


def _run_tta(*arguments: str) -> dict[str, Any]:
    """Return the JSON of the last line that a command prints."""
    command = [sys.executable, "-m", "tta_serve.cli.main", *arguments]
    environment = os.environ | {"TTA_ADMIN_KEY": ADMIN_KEY}
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(1200 + REQUESTS // 2)
def test_no_answer_tells_a_tenant_of_the_other_one(server: Demo) -> None:
    draw = random.Random(0)
    everybody = sorted(set.union(*OWN.values()))
    policies = ("retrieval", "gate", "inline", "arrow", "gated", "uniform", "learned", "base")

    def draw_wish() -> dict[str, Any]:
        kind = draw.randrange(6)
        if kind == 0:
            return {"model": draw.choice(everybody)}
        if kind == 1:
            return {"model": f"smollm2:{draw.choice([*everybody, 'learned', 'balanced'])}"}
        if kind == 2:
            names = draw.sample(everybody, 2)
            return {"merge": {"experts": dict.fromkeys(names, 0.5)}}
        if kind == 3:
            return {"merge": {"entry": draw.choice(["balanced", "learned", "nope"])}}
        if kind == 4:
            return {"merge": {"policy": draw.choice([*policies, "nope"])}}
        return {}

    def check(asked: tuple[str, str, dict[str, Any]]) -> int:
        tenant, question, wish = asked
        answer = chat(server, tenant, question, user=draw.choice("xyz"), **wish)
        assert answer.status_code in (200, 400, 404), answer.text
        said = dict(answer.headers) | answer.json()
        said.pop("choices", None)  # what a model says is its own
        text = json.dumps(said)
        others = set.union(*OWN.values()) - OWN[tenant]
        given = json.dumps(wish)
        for name in others:
            assert text.count(name) <= given.count(name), (wish, text)
        if answer.status_code == 200:
            assert answer.json()["merge"]["experts"].keys() <= OWN[tenant]
        return int(answer.status_code)

    drawn = [
        (draw.choice(sorted(OWN)), draw.choice(QUESTIONS), draw_wish()) for _ in range(REQUESTS)
    ]
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(check, drawn))
    assert codes.count(200) > REQUESTS / 3
