"""The demo's two full fine-tunes, served in each form that an expert can have, and scored."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, Form, LowRankForm, OneBitForm
from adapters.library.ingest import OwnerNotes, draft_folder
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from deploy.demo.base import ensure_base
from deploy.demo.evaluate import draw_examples
from deploy.demo.finetune import TRAINED, write_finetune
from deploy.demo.jobs import Job, score_jobs
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.local_server import serve_locally

CONFIG = Path(__file__).parent / "serve.yaml"
FORMS: dict[str, Form] = {
    "dense": DenseForm(),
    "one-bit": OneBitForm(),
    "rank-16": LowRankForm(rank=16),
    "rank-64": LowRankForm(rank=64),
}


class FormScore(NamedTuple):
    """How a fine-tune does in one form."""

    task: str
    form: str
    size: int
    """The bytes of its weights on disk."""
    right: float
    """The share of test prompts that are answered exactly."""


def build_library(root: Path) -> Library:
    """Make a library of the fine-tunes, each in every form, called TASK-FORM."""
    store = VersionStore(root / "library")
    base = Checkpoint.open(ensure_base())
    for task in TRAINED:
        folder = root / task
        write_finetune(task, folder)
        for form_name, form in FORMS.items():
            draft = draft_folder(folder, f"{task}-{form_name}", base, form, OwnerNotes())
            store.add(draft.name, draft.deltas, draft.form, draft.about, draft.base)
    return Library.open(store.root)


def make_config(library: Library) -> ServeConfig:
    """Return the demo's config with this library and no policies."""
    overrides = {
        "model.source": str(ensure_base()),
        "model.max_model_len": 1024,
        "library.path": str(library.root),
        "library.entries": {},
        "policies": {},
        "default_policy": "base",
    }
    return load(CONFIG, overrides)


def score_forms(count: int, tell: Callable[[], None]) -> list[FormScore]:
    """Serve every form of every fine-tune at once, and score it on test prompts of its task.

    Args:
        count: How many prompts of each task are asked.
        tell: Called after each answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(Path(folder))
        asked = {task: draw_examples(task, "test", count) for task in TRAINED}
        jobs = [
            Job(name, {"model": f"smollm2:{name}"}, task, example)
            for name in library.names
            for task in [name.split("-", 1)[0]]
            for example in asked[task]
        ]
        jobs += [
            Job(f"{task}-base", {"model": "smollm2:base"}, task, example)
            for task, own in asked.items()
            for example in own
        ]
        with serve_locally(make_config(library)) as (url, _):
            shares = score_jobs(url, jobs, tell)
        sizes = {name: library.managed[name].report.bytes_after for name in library.names}
    found = []
    for name, share in shares.items():
        task, form = name.split("-", 1)
        found.append(FormScore(task, form, sizes.get(name, 0), share))
    return found
