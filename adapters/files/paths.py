"""What is wrong with a path that a user gave, in words that say what would have worked."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import LibraryError
from adapters.files.facts import CONFIG_FILE, is_peft_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ADAPTERS_OF_OTHERS = {
    "lora.safetensors": "mistral-finetune",
    "adapters.safetensors": "MLX",
    "pytorch_lora_weights.safetensors": "diffusers",
}
"""Files by which adapters of other tools are known."""
_MOST_NAMED = 5


@contextmanager
def name_unreadable(path: Path) -> Iterator[None]:
    """Turn what the system refuses meanwhile into a LibraryError that names the path."""
    try:
        yield
    except OSError as error:
        raise LibraryError(explain_refusal(error, path)) from None


def explain_refusal(error: OSError, path: Path | str = "") -> str:
    """Say which file the system refused, and why."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    reason = error.strerror or str(error)
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = ": let this user read it, or run as one who may"
    return f"{place} cannot be used: {reason}{hint}"


def check_folder(path: Path, what: str) -> None:
    """Raise LibraryError unless a path is a folder that may be read.

    Args:
        path: As the user gave it.
        what: What the folder is for, such as "the base".
    """
    with name_unreadable(path):
        if path.is_dir():
            list(path.iterdir())
            return
        if path.is_symlink() and not path.exists():
            target = path.readlink()
            raise LibraryError(f"{what} {path} is a link to {target}, which is not there")
        if path.exists():
            raise LibraryError(f"{what} {path} is a file: give its folder, {path.parent}")
    raise LibraryError(f"{what} {path}: no such folder{_explain_missing(path)}")


def check_expert_folder(path: Path) -> None:
    """Raise LibraryError for a folder that is neither a PEFT adapter nor a checkpoint.

    The message says what it is instead, as far as its files tell.
    """
    check_folder(path, "the expert")
    with name_unreadable(path):
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        is_halved = any(name.startswith("adapter_model") for name in names)
        if is_peft_folder(path) or (has_checkpoint(path) and not is_halved):
            return
        raise LibraryError(f"{path} {_explain_content(path, names)}")


def has_checkpoint(path: Path) -> bool:
    """Return whether a folder holds a checkpoint's files, if only pickles, which are refused."""
    from adapters.files.safetensors_reader import PICKLES

    return any(
        file.name.startswith(("model.safetensors", "model-")) or file.suffix in PICKLES
        for file in path.iterdir()
        if not file.name.startswith(".")
    )


def _explain_missing(path: Path) -> str:
    text = str(path)
    if _HUB_ID.fullmatch(text) and not path.parent.exists():
        return (
            f"; give a folder, not a hub id: hf download {text} --local-dir FOLDER makes one of it"
        )
    there = path.parent
    while not there.exists():
        there = there.parent
    return f"; {there} is there" if there != path.parent else ""


def _explain_content(path: Path, names: list[str]) -> str:
    """Say what a folder holds that is neither an adapter nor a checkpoint."""
    if not names:
        return "is empty"
    if known := next(filter(None, map(_explain_file, names)), None):
        return known
    below = [name for name in names if (path / name).is_dir()]
    adapters = [f"{name}/" for name in below if is_peft_folder(path / name)]
    if adapters:
        return f"is no adapter; there are adapters in: {_list(adapters)}"
    checkpoints = [f"{name}/" for name in below if has_checkpoint(path / name)]
    if checkpoints:
        return f"is no checkpoint; there are checkpoints in: {_list(checkpoints)}"
    return (
        f"is no PEFT adapter, which has an {CONFIG_FILE}, and no checkpoint, which has a"
        f" model.safetensors; it holds: {_list(names)}"
    )


def _explain_file(name: str) -> str | None:
    """Say what a file is that is known by its name, and what to do."""
    if name in _ADAPTERS_OF_OTHERS:
        return (
            f"holds {name}, an adapter of {_ADAPTERS_OF_OTHERS[name]}, which is not read: convert"
            " it to PEFT's layout"
        )
    if name.startswith("adapter_model"):
        return f"holds {name} and no {CONFIG_FILE}: copy the whole folder of the adapter"
    if name.endswith(".gguf"):
        return f"holds {name}: GGUF is not read; give the folder it was converted from"
    return None


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
