"""A config of a tiny random base with a tokenizer and three experts, which a server starts from."""

from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tests.factories.tiny_engines import SHAPE, write_base, write_library

EXPERTS = ("few", "rslora", "small")
_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
_LONGEST = 4096


def write_service(folder: Path, **sections: Any) -> Path:
    """Write the base, the library and the config, which `sections` go on top of.

    Returns the config's place.
    """
    base = write_base(folder / "base", LlamaConfig(**SHAPE | {"max_position_embeddings": _LONGEST}))
    make_tokenizer().save_pretrained(base)
    write_library(folder / "experts", base)
    config = {
        "model": {"id": "tiny", "source": str(base)},
        "library": {"path": "experts", "readings": None},
        "default_policy": "base",
        "access": {"insecure": True},
        **sections,
    }
    place = folder / "serve.yaml"
    place.write_text(yaml.safe_dump(config), encoding="utf-8")
    return place


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, so that answers can be held to a schema; what else there is, is no text."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<bos>", "<eos>", *bytes_]
    names += [f"<{i}>" for i in range(len(names), SHAPE["vocab_size"])]
    tokens = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
