"""A library of two experts of a tiny random base, with a tokenizer of a word a token.

The base is loud: what an expert changes shows in the predictions.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from tests.factories.experts import LLAMA, make_expert
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.mixed_model import MixedModel, Sample

WORDS = [f"w{i}" for i in range(64)]
NAMES = ("math", "sql")
EXAMPLES = {
    "math": [f"w{i} w{i + 1} w{i + 2} w3" for i in range(3, 9)],
    "sql": [f"w{i} w{60 - i} w{i} w{i} w50" for i in range(40, 46)],
}
EVERYDAY = [f"w{i} w20 w{25 + i} w21" for i in range(20, 26)]


def make_base(folder: Path, seed: int, shift: float = 0.0) -> Path:
    """Save a random base whose layers a seed has shifted, and a tokenizer of a word a token."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * shift)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def read_ids(prompt: str) -> torch.Tensor:
    """Return the tokens of a prompt by the base's tokenizer, [1, tokens]."""
    return torch.tensor([[int(word[1:]) for word in prompt.split()]])


def make_library(root: Path) -> Path:
    """Make the library, and its base in the folder `base` beside it."""
    base = make_base(root / "base", 0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(base)
    for seed, name in enumerate(NAMES):
        make_expert(
            root / "library" / name, base, seed=seed, layers=range(2), rank=2 + seed, strength=2
        )
        (root / "library" / name / "examples.txt").write_text(
            "\n".join(EXAMPLES[name]), encoding="utf-8"
        )
    return root / "library"


def load_mixed(library: Path, *names: str) -> MixedModel:
    """Load the base with some experts of the library."""
    opened = Library.open(library)
    return MixedModel(
        PlainModel.load(Checkpoint.open(library.parent / "base")),
        [opened.expert(name) for name in names],
    )


def sample_answers(experts: MixedModel, most: int = 6) -> list[list[Sample]]:
    """Let each expert answer its first three example prompts."""
    return [
        [experts.make_sample(k, prompt, most) for prompt in EXAMPLES[e.name][:3]]
        for k, e in enumerate(experts.experts)
    ]
