"""A library of two experts of a tiny random base that is loud: what an expert changes shows in the predictions."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from adapters.checkpoint import Checkpoint
from adapters.library import Library
from tests.made import make_expert
from tests.tta_serve.test_offline import llama
from tta_serve.mixed import Mixed, Sample
from tta_serve.offline import Offline

NAMES = ("math", "sql")
EXAMPLES = {
    "math": [f"w{i} w{i + 1} w{i + 2} w3" for i in range(3, 9)],
    "sql": [f"w{i} w{60 - i} w{i} w{i} w50" for i in range(40, 46)],
}
EVERYDAY = [f"w{i} w20 w{25 + i} w21" for i in range(20, 26)]


def make(root: Path) -> Path:
    """Returns the library's folder; the base's is `base` beside it."""
    base = llama(root / "base", 0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(base)
    for seed, name in enumerate(NAMES):
        make_expert(root / "library" / name, base, seed=seed, layers=range(2), rank=2 + seed, strength=2)
        (root / "library" / name / "examples.txt").write_text("\n".join(EXAMPLES[name]))
    return root / "library"


def mixed(library: Path, *names: str) -> Mixed:
    opened = Library.open(library)
    return Mixed(Offline.load(Checkpoint.open(library.parent / "base")), [opened.expert(name) for name in names])


def answers(experts: Mixed, most: int = 6) -> list[list[Sample]]:
    return [[experts.sample(k, prompt, most) for prompt in EXAMPLES[e.name][:3]] for k, e in enumerate(experts.experts)]
