"""What a folder from outside says of itself that its weights do not: its base, tokenizer, template.

Nothing here changes what an expert computes. It is told when an expert is added, and kept in its
manifest, since requests are written and read with the base's own template and tokenizer.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.files.facts import CONFIG_FILE as ADAPTER_CONFIG
from adapters.files.model_config import CONFIG_FILE

_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_STATED_BASE = {ADAPTER_CONFIG: "base_model_name_or_path", CONFIG_FILE: "_name_or_path"}
_MAX_BYTES = 1 << 26


def note_differences(folder: Path, base: Path) -> Iterator[str]:
    """Yield a sentence for all by which a folder from outside seems made for another base.

    Args:
        folder: A PEFT adapter's, or a fine-tune's.
        base: The folder of the base that it is added for.
    """
    stated = _read_stated_base(folder)
    if stated and _short_name(stated) not in _names(base):
        yield f"it says that it was trained on {stated}; the library's base is {base}"
    mine, theirs = _read_template(folder), _read_template(base)
    if mine is not None and mine != theirs:
        yield "it has another chat template than the base, which chat requests are written with"
    for name in _TOKENIZER_FILES:
        own, others = _read_vocabulary(folder / name), _read_vocabulary(base / name)
        if own is not None and others is not None and own != others:
            yield f"its {name} has other tokens than the base's, which prompts are read with"


def _read_stated_base(folder: Path) -> str | None:
    """Return the name or path of the base that a folder says it was trained on."""
    for file, key in _STATED_BASE.items():
        stated = _read_object(folder / file).get(key)
        if isinstance(stated, str) and stated:
            return stated
    return None


def _names(base: Path) -> set[str]:
    """Return what a base may be called: by its folder, its hub's cache, and its own files."""
    folder = base.resolve()
    own = _read_object(folder / CONFIG_FILE).get("_name_or_path")
    cached = folder.parent.parent.name.replace("--", "/")
    return {_short_name(name) for name in (folder.name, cached, own) if isinstance(name, str)}


def _short_name(name: str) -> str:
    """Return a name without its owner or the folders before it."""
    return name.rstrip("/").rpartition("/")[2].lower()


def _read_template(folder: Path) -> str | None:
    file = folder / _TEMPLATE_FILE
    content = _read_bytes(file)
    if content is not None:
        return content.decode("utf-8-sig", "replace").strip()
    template = _read_object(folder / _TOKENIZER_CONFIG).get("chat_template")
    return template.strip() if isinstance(template, str) else None


def _read_vocabulary(file: Path) -> Any:
    """Return what a tokenizer's file says of its tokens and their ids, None without such a file."""
    content = _read_bytes(file)
    if content is None or file.suffix != ".json":
        return content
    parsed = _read_object(file)
    model = parsed.get("model")
    if not isinstance(model, dict):
        return parsed or content
    added = parsed.get("added_tokens") or []
    names = {t.get("content"): t.get("id") for t in added if isinstance(t, dict)}
    return model.get("vocab"), names


def _read_object(file: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one if there is none that can be read."""
    content = _read_bytes(file)
    try:
        parsed = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _read_bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.stat().st_size <= _MAX_BYTES else None
    except OSError:
        return None
