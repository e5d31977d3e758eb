"""Twin-Merging of the demo's experts beside the experts themselves, at equal bytes, scored."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from adapters.files.delta_forms import LowRankForm
from adapters.library.ingest import draft_twins, write_drafts
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from adapters.merge.twin import build_twins
from deploy.demo.base import ensure_base
from deploy.demo.evaluate import draw_examples
from deploy.demo.jobs import Job, score_jobs
from deploy.demo.model import EXPERTS
from deploy.demo.tasks import TASKS
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.local_server import serve_locally

CONFIG = Path(__file__).parent / "serve.yaml"
PREFIX = "t"
SHARED_WEIGHT = 0.3
RANK = 14
"""Seven parts of rank 14 have about the bytes of six experts of rank 16."""
POLICIES: dict[str, dict[str, Any]] = {
    "retrieval": {"type": "retrieval", "inline": True},
    "twin": {"type": "twin", "inline": True, "options": {"prefix": PREFIX}},
}


class ArmScore(NamedTuple):
    """How the demo's tasks are answered in one way."""

    arm: str
    size: int
    """The bytes of the factors that it needs, as float32."""
    right: float
    """The share of test prompts that are answered exactly."""


def build_library(root: Path, rank: int | None) -> Library:
    """Copy the demo's experts, and add their parts.

    Args:
        root: Where to.
        rank: That of every part; None for exact ones.
    """
    shutil.copytree(EXPERTS, root)
    library = Library.open(root)
    twins = build_twins({name: library.deltas(name) for name in TASKS}, SHARED_WEIGHT)
    drafts = draft_twins(library, PREFIX, twins, LowRankForm(rank), SHARED_WEIGHT)
    write_drafts(VersionStore(root), drafts, lambda _: lambda _: {}, lambda *_: None)
    return Library.open(root)


def make_config(library: Library) -> ServeConfig:
    """Return the demo's config with this library, and the two policies."""
    overrides = {
        "model.source": str(ensure_base()),
        "model.max_model_len": 1024,
        "library.path": str(library.root),
        "policies": POLICIES,
        "default_policy": "retrieval",
    }
    return load(CONFIG, overrides)


def score_twins(count: int, rank: int | None, tell: Callable[[], None]) -> list[ArmScore]:
    """Serve experts and parts at once, and score them on test prompts of all tasks.

    Args:
        count: How many prompts of each task are asked.
        rank: Of the parts, None for exact ones.
        tell: Called after each answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(Path(folder) / "library", rank)
        jobs = []
        for task in TASKS:
            arms: dict[str, dict[str, Any]] = {
                "the right expert": {"model": f"smollm2:{task}"},
                "the right part and the shared one": {"model": f"smollm2:{PREFIX}-{task}"},
                "the shared part alone": {"model": f"smollm2:{PREFIX}-shared"},
                **{
                    name: {"model": "smollm2", "extra_body": {"merge": {"policy": name}}}
                    for name in POLICIES
                },
            }
            examples = draw_examples(task, "test", count)
            jobs += [Job(a, request, task, one) for a, request in arms.items() for one in examples]
        with serve_locally(make_config(library)) as (url, _):
            shares = score_jobs(url, jobs, tell)
        sizes = {
            name: sum(f.a.nbytes + f.b.nbytes for f in library.expert(name).factors.values())
            for name in library.names
        }
    whole = sum(sizes[task] for task in TASKS)
    parts = sum(size for name, size in sizes.items() if name.startswith(f"{PREFIX}-"))
    return [
        ArmScore(arm, whole if arm in ("the right expert", "retrieval") else parts, share)
        for arm, share in shares.items()
    ]
