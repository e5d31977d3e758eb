"""`python -m loadtest soak`: every answer is checked while experts come and go, for a long time.

Mixes are random, and some requests are cancelled. Every answer is compared with the tokens that
the same prompt and mix got alone. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import openai
import psutil
import typer
from safetensors.torch import load_file, save_file

from adapters.files.facts import WEIGHTS_FILE
from loadtest.common.console import progress
from loadtest.sides.checked_load import is_clear
from tta_serve.evaluation.local_server import find_free_port
from tta_serve.metrics import sum_samples

NAMES = ("extra-1", "extra-2")
VARIANTS = ("1.02", "0.98", "0.9")  # of the first expert's strength
PROMPTS = 6
MIXES = 24
TOKENS = 16
CANCELLED = 0.1
SAMPLE_S = 2.0


@dataclass(frozen=True)
class SoakQuestion:
    """A prompt and a mix."""

    prompt: str
    experts: tuple[tuple[str, Any], ...]
    """Coefficients by expert, as a request names them."""


@dataclass
class SoakReport:
    """What happened."""

    minutes: float
    """How long was asked."""
    answers: int = 0
    """Answers that were compared."""
    wrong: int = 0
    """Those that were not the expected ones."""
    cancelled: int = 0
    """Requests that were given up."""
    gone: int = 0
    """Requests refused because their expert had just been unloaded."""
    errors: Counter[str] = field(default_factory=Counter)
    """Any other failures, by their words."""
    changes: int = 0
    """Experts loaded, replaced or unloaded."""
    mixes: int = 0
    """Different mixes among the expected answers."""
    memory_mib: list[float] = field(default_factory=list)
    """Memory of all of the server's processes, sampled."""
    memory_growth: float = 0.0
    """The last quarter's median memory over that of the second quarter, less 1."""
    experts_before: int = 0
    """Experts that the engine held at the start."""
    experts_after: int = 0
    """Experts that it held at the end."""
    slots_used: int = 0
    slots: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong and nothing was left over."""
        kept = self.experts_after == self.experts_before and self.slots_used <= self.slots
        return kept and not self.wrong and not self.errors and self.answers > 0


@dataclass(frozen=True)
class SoakTarget:
    """A running server."""

    url: str
    admin_key: str
    experts: Path
    """Its library's folder, ours to change."""
    pid: int
    """Its process, whose memory is watched."""


class Soak:
    """One run against a server."""

    def __init__(self, target: SoakTarget, *, concurrency: int = 12, seed: int = 0) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Ray has it tell of every request
        headers = {"authorization": f"Bearer {target.admin_key}"}
        self._client = openai.AsyncOpenAI(
            base_url=f"{target.url}/v1", api_key="unused", max_retries=0, timeout=120
        )
        self._admin = httpx.AsyncClient(base_url=target.url, headers=headers, timeout=120)
        self._experts = target.experts
        self._process = psutil.Process(target.pid)
        self._concurrency = concurrency
        self._rng = random.Random(seed)
        self._expected: dict[tuple[str, str], str] = {}  # by prompt and mix
        self._loaded: dict[str, str] = {}  # digests of the experts that come and go

    async def run(self, minutes: float) -> SoakReport:
        """Learn the answers one by one, then ask for them all at once until the time is over."""
        self._report = SoakReport(minutes)
        self._report.experts_before = await self._experts_used()
        served = sorted((await self._served()).keys())
        with tempfile.TemporaryDirectory() as folder:
            variants = _variants(self._experts / served[0], Path(folder))
            fixed = await self._questions(served, variants)
            self._end = time.monotonic() + minutes * 60
            asking = (self._ask_on(fixed) for _ in range(self._concurrency))
            await asyncio.gather(self._watch(), self._change_on(variants), *asking)
            for name in list(self._loaded):
                await self._unload(name)
        await self._close()
        return self._report

    async def _questions(
        self, served: Sequence[str], variants: Sequence[Path]
    ) -> list[SoakQuestion]:
        """Return questions with clear answers, which are learned.

        Some are of the experts that come and go, in every variant of them.
        """
        prompts = [line for name in served for line in _lines(self._experts / name)[:1]][:PROMPTS]
        mixes = [_mix(self._rng, served) for _ in range(MIXES)]
        asked = [
            SoakQuestion(prompt, mix) for mix in mixes for prompt in self._rng.sample(prompts, 2)
        ]
        found = [question for question in asked if await self._learn(question)]
        for variant in variants:
            for name in NAMES:
                await self._load(name, variant)
            for mix in ({NAMES[0]: 1.0}, {NAMES[1]: 0.5, served[1]: 0.5}):
                question = SoakQuestion(prompts[0], tuple(mix.items()))
                if await self._learn(question) and question not in found:
                    found.append(question)
        assert any(set(dict(q.experts)) & set(NAMES) for q in found), (
            "no clear answer of an expert that comes and goes"
        )
        return found

    async def _learn(self, question: SoakQuestion) -> bool:
        """Ask alone; return whether the answer is clear enough to be the same in any batch."""
        answer = await self._ask(question, logprobs=True, top_logprobs=2)
        if not is_clear(answer.model_dump()["choices"][0]["logprobs"]["content"]):
            return False
        self._expected[question.prompt, answer.merge["mix"]] = answer.choices[0].message.content
        self._report.mixes = len({mix for _, mix in self._expected})
        return True

    async def _ask(self, question: SoakQuestion, **more: Any) -> Any:
        return await self._client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": question.prompt}],
            temperature=0,
            max_tokens=TOKENS,
            extra_body={"ignore_eos": True, "merge": {"experts": dict(question.experts)}},
            **more,
        )

    async def _ask_on(self, questions: Sequence[SoakQuestion]) -> None:
        while time.monotonic() < self._end:
            question = self._rng.choice(questions)
            try:
                if self._rng.random() < CANCELLED:
                    await self._give_up(question)
                else:
                    await self._compare(question)
            except openai.BadRequestError as error:
                self._count_refusal(question, error)
            except openai.OpenAIError as error:
                self._report.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(1)

    async def _compare(self, question: SoakQuestion) -> None:
        answer = await self._ask(question)
        want = self._expected.get((question.prompt, answer.merge["mix"]))
        self._report.answers += 1
        if answer.choices[0].message.content != want:
            self._report.wrong += 1
            got = answer.choices[0].message.content
            progress.print("wrong:", question, answer.merge, want, got, markup=False)

    async def _give_up(self, question: SoakQuestion) -> None:
        stream = await self._ask(question, stream=True)
        await asyncio.sleep(self._rng.random() * 0.5)
        await stream.close()
        self._report.cancelled += 1

    def _count_refusal(self, question: SoakQuestion, error: openai.BadRequestError) -> None:
        if set(dict(question.experts)) & set(NAMES) and "unknown expert" in str(error):
            self._report.gone += 1
        else:
            self._report.errors[str(error)[:200]] += 1

    async def _change_on(self, variants: Sequence[Path]) -> None:
        while time.monotonic() < self._end:
            name = self._rng.choice(NAMES)
            if name in self._loaded and self._rng.random() < 0.5:
                await self._unload(name)
            else:
                await self._load(name, self._rng.choice(variants))
            self._report.changes += 1
            await asyncio.sleep(self._rng.uniform(0.2, 2))

    async def _load(self, name: str, variant: Path) -> None:
        shutil.rmtree(self._experts / name, ignore_errors=True)
        shutil.copytree(variant, self._experts / name)
        replaces = {"replaces": self._loaded[name]} if name in self._loaded else {}
        (await self._admin.put(f"/admin/experts/{name}", params=replaces)).raise_for_status()
        self._loaded[name] = (await self._served())[name]

    async def _unload(self, name: str) -> None:
        digest = self._loaded.pop(name)
        (
            await self._admin.delete(f"/admin/experts/{name}", params={"digest": digest})
        ).raise_for_status()
        shutil.rmtree(self._experts / name)

    async def _replica(self) -> dict[str, Any]:
        (replica,) = (await self._admin.get("/admin/experts")).raise_for_status().json()["replicas"]
        found: dict[str, Any] = replica
        return found

    async def _served(self) -> dict[str, str]:
        found: dict[str, str] = (await self._replica())["experts"]
        return found

    async def _experts_used(self) -> int:
        return int((await self._replica())["used"]["experts"])

    async def _watch(self) -> None:
        """Sample the memory of all of the server's processes, without what they share."""
        while time.monotonic() < self._end:
            self._report.memory_mib.append(self._memory() / 2**20)
            await asyncio.sleep(min(SAMPLE_S, max(0.0, self._end - time.monotonic())))

    def _memory(self) -> int:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss - process.memory_info().shared
        return total

    async def _close(self) -> None:
        report = self._report
        quarter = len(report.memory_mib) // 4
        report.memory_growth = (
            median(report.memory_mib[-quarter:]) / median(report.memory_mib[quarter : 2 * quarter])
            - 1
        )
        for _ in range(100):
            report.experts_after = await self._experts_used()
            if report.experts_after == report.experts_before:
                break
            await asyncio.sleep(0.2)
        metrics = (await self._admin.get("/metrics")).text
        report.slots_used, report.slots = (
            int(sum_samples(metrics, name)) for name in ("tta_slots_used", "tta_slots")
        )


def _variants(expert: Path, folder: Path) -> list[Path]:
    """Make copies of an expert that differ in strength, so that each answers in its own way."""
    for strength in VARIANTS:
        shutil.copytree(expert, folder / strength)
        tensors = load_file(folder / strength / WEIGHTS_FILE)
        scaled = {
            name: t * float(strength) if "lora_B" in name else t for name, t in tensors.items()
        }
        save_file(scaled, folder / strength / WEIGHTS_FILE)
    return [folder / strength for strength in VARIANTS]


def _mix(rng: random.Random, names: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Draw one to three experts, one now and then stronger in attention than in the MLPs."""
    chosen = rng.sample(names, rng.randint(1, 3))
    sizes = [round(rng.randint(2, 20) * 0.05, 2) for _ in chosen]
    mix: dict[str, Any] = dict(zip(chosen, sizes, strict=True))
    if rng.random() < 0.3:
        mix[chosen[0]] = {"attention": sizes[0], "mlp": 0.5}
    return tuple(mix.items())


def _lines(expert: Path) -> list[str]:
    return (expert / "examples.txt").read_text(encoding="utf-8").splitlines()


def command(
    minutes: Annotated[float, typer.Option(min=0.5, max=120, help="How long to ask.")] = 30,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 12,
    seed: Annotated[int, typer.Option(help="Of mixes, prompts and changes.")] = 0,
) -> None:
    """Serve the demo from a copy of its library, and change that while many ask.

    Ends with an error if anything was wrong.
    """
    report = asdict(_serve_and_soak(minutes, concurrency, seed))
    report["memory_mib"] = [round(min(report["memory_mib"])), round(max(report["memory_mib"]))]
    for name, value in report.items():
        progress.print(f"{name}: {value}", markup=False)
    print(json.dumps(report), flush=True)


def _serve_and_soak(minutes: float, concurrency: int, seed: int) -> SoakReport:
    from deploy.demo.base import ensure_base
    from loadtest.common.workload import EXPERTS
    from tta_serve.config.loading import load
    from tta_serve.serving.launch import managed

    with tempfile.TemporaryDirectory(prefix="soak-") as folder, ExitStack() as stack:
        experts = Path(folder) / "experts"
        shutil.copytree(EXPERTS, experts)
        options = {
            "model.source": str(ensure_base()),
            "library.path": str(experts),
            "server.port": find_free_port(),
        }
        with progress.status("start the demo ..."):
            config = load(EXPERTS.parent / "serve.yaml", options)
            url, key = stack.enter_context(managed(config))
        soak = Soak(SoakTarget(url, key, experts, os.getpid()), concurrency=concurrency, seed=seed)
        report = asyncio.run(soak.run(minutes))
    if not report.clean:
        progress.print("[red]not clean[/red]")
        print(json.dumps(asdict(report)), flush=True)
        raise typer.Exit(1)
    return report
