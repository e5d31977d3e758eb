"""Kill the engine under load (-9); runs last, as the demo needs a minute to come back."""

import re
import threading
import time
from typing import Any

import httpx
import openai

from tests.e2e.conftest import ADMIN_KEY, Demo

MODEL = "smollm2"
QUESTION = "Table staff(name, salary, dept). Which name in staff have salary above 70?"


def ask(client: openai.OpenAI, **options: Any) -> Any:
    settings = {"max_tokens": 24, "temperature": 0, **options}
    return client.chat.completions.create(
        model=f"{MODEL}:sql", messages=[{"role": "user", "content": QUESTION}], **settings
    )


def test_requests_in_flight_get_an_error_and_the_server_recovers_by_itself(demo: Demo) -> None:
    client = demo.client()
    before = ask(client).choices[0].message.content
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    config = f"{demo.url}/admin/config"
    wanted = {"server": {"max_queued": 200}}
    version = httpx.put(config, json=wanted, headers=admin, timeout=120).json()["version"]
    outcomes: list[str] = []

    def long_request(stream: bool) -> None:
        try:
            answer = ask(client, max_tokens=1500, stream=stream, extra_body={"ignore_eos": True})
            if stream:
                for _ in answer:
                    pass
            outcomes.append("answered")
        except (openai.APIError, httpx.HTTPError) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=long_request, args=(i % 2 == 0,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    (engine,) = demo.descendants("VLLM::EngineCore")
    engine.kill()
    for thread in threads:
        thread.join(120)
    assert not any(t.is_alive() for t in threads), "a request hangs"
    assert len(outcomes) == 8
    assert "answered" not in outcomes, outcomes

    time.sleep(5)  # until the health check has seen it
    demo.wait_ready()
    assert ask(demo.client()).choices[0].message.content == before
    assert httpx.get(config, headers=admin).json()["server"]["max_queued"] == 200, "as before"
    text = httpx.get(f"{demo.url}/metrics", timeout=60).text
    assert re.search(r"^tta_suspects\{.*\} 1\.0", text, re.M), "all eight ask for the same"
    history = httpx.get(f"{config}/history", headers=admin).json()
    assert history["version"] == version
    assert (
        demo.client()
        .chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=8
        )
        .model_dump()["merge"]["policy"]
        == "inline"
    )
