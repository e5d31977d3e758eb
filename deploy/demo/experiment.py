"""The demo's experiment from the first user to the verdict.

The users are simulated; server and client are real.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from openai import AsyncOpenAI

from deploy.demo.base import ensure_base
from deploy.demo.tasks import TASKS
from router.probing import gather_all
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig

CONFIG = Path(__file__).parent / "serve.yaml"
EXPERIMENT = Path(__file__).parent / "experiment.yaml"
AT_ONCE = 8
_SPARE_TOKENS = 4  # an answer may be a little longer than the right one


@dataclass(frozen=True)
class User:
    """A simulated user, who asks one thing and says whether the answer was right."""

    name: str
    prompt: str
    want: str
    most: int
    """The most tokens that the answer may have."""


def draw_users(count: int, seed: int) -> list[User]:
    """Draw users, each with a test prompt of a random task."""
    from transformers import AutoTokenizer

    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(str(ensure_base()))
    drawn = rng.choices(list(TASKS), k=count)
    prompts = {
        task: iter(TASKS[task].examples("test", drawn.count(task), seed)) for task in set(drawn)
    }
    asked = [next(prompts[task]) for task in drawn]
    lengths = [
        len(ids) + _SPARE_TOKENS for ids in tokenizer([found.answer for found in asked]).input_ids
    ]
    found = enumerate(zip(asked, lengths, strict=True))
    return [User(f"user-{seed}-{i}", one.prompt, one.answer, most) for i, (one, most) in found]


def make_config(store: str, port: int) -> ServeConfig:
    """Return the demo's config with a store and the policies of the experiment alone."""
    config = load(
        CONFIG, {"model.source": str(ensure_base()), "store.url": store, "server.port": port}
    )
    arms = yaml.safe_load(EXPERIMENT.read_text(encoding="utf-8"))["arms"]
    wanted = {"base", config.default_policy, *(arm["policy"] for arm in arms)}
    policies = {name: policy for name, policy in config.policies.items() if name in wanted}
    return config.model_copy(
        update={
            "policies": policies,
            "experiments": config.experiments.model_copy(update={"guard_s": 1.0}),
        }
    )


async def run(url: str, key: str, crowd: list[User], tell: Callable[[], None]) -> dict[str, Any]:
    """Define and start the experiment, let every user ask once, and stop it.

    Returns:
        The experiment as it then is.
    """
    definition = yaml.safe_load(EXPERIMENT.read_text(encoding="utf-8"))
    path = f"/admin/experiments/{definition['name']}"
    admin = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=300)
    async with admin, client:
        made = await admin.put(path, json=definition, headers={"if-none-match": "*"})
        seen = {"if-match": made.raise_for_status().headers["etag"]}
        (await admin.post(f"{path}/start", headers=seen)).raise_for_status()
        await asyncio.sleep(1)

        async def ask(user: User) -> None:
            await _ask(client, admin, user)
            tell()

        await gather_all(ask, crowd, AT_ONCE)
        await asyncio.sleep(2)  # the last exposures are written
        now = (await admin.get(path)).raise_for_status()
        stopped = await admin.post(
            f"{path}/stop", json={}, headers={"if-match": now.headers["etag"]}
        )
        found: dict[str, Any] = stopped.raise_for_status().json()
        return found


async def _ask(client: AsyncOpenAI, admin: httpx.AsyncClient, user: User) -> None:
    answer: Any = await client.chat.completions.create(
        model="auto",
        user=user.name,
        messages=[{"role": "user", "content": user.prompt}],
        temperature=0,
        max_tokens=user.most,
    )
    right = answer.choices[0].message.content.strip() == user.want
    outcome = {"request_id": answer.merge["request_id"], "metric": "score", "value": float(right)}
    (await admin.post("/v1/feedback", json=outcome)).raise_for_status()


def run_demo(
    count: int, seed: int, out: Path, port: int, tell: Callable[[], None]
) -> dict[str, Any]:
    """Run the whole of it, on a database of its own, and leave the report in `out`.

    Returns:
        The last line of the command.
    """
    from tta_serve.experiments.analysis.report import make_report, summarise, write_report
    from tta_serve.serving.launch import managed
    from tta_serve.store.database import Database

    with tempfile.TemporaryDirectory(prefix="tta-experiment-") as folder:
        store = f"sqlite:///{folder}/demo.db"
        with managed(make_config(store, port)) as (url, key):
            asyncio.run(run(url, key, draw_users(count, seed), tell))
        db = Database(store)
        try:
            report = make_report(db, "routing")
        finally:
            db.close()
    write_report(report, out)
    found = summarise(report)
    return {key: found[key] for key in ("winner", "srm_p", "stopped_arms")} | {"users": count}
