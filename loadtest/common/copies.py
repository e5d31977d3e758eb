"""Libraries of any number of experts, made from a few."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.library.library import Library


def make_library(count: int, source: Library, folder: Path) -> Library:
    """Make a library of `count` experts in `folder`.

    The first ones are the source's own; copy i of one has its B times 1 + i / 1000. The factor
    makes a copy another expert: equal content has an equal digest and would be one expert to the
    engine.
    """
    for k in range(count):
        i, which = divmod(k, len(source.names))
        name = source.names[which]
        copy_expert(source.root / name, folder / f"{name}-{i:02d}", 1 + 1e-3 * i)
    return Library.open(folder)


def original_names(library: Library) -> list[str]:
    """Return the names of the experts that are no altered copies."""
    return [name for name in library.names if name.endswith("-00")]


def copy_expert(source: Path, target: Path, factor: float) -> None:
    """Write a copy of an expert's weights whose B are so many times as large."""
    target.mkdir(parents=True)
    tensors = load_file(source / WEIGHTS_FILE)
    scaled = {
        key: value.float() * factor if ".lora_B." in key else value.float()
        for key, value in tensors.items()
    }
    save_file(scaled, target / WEIGHTS_FILE)
    shutil.copy(source / CONFIG_FILE, target / CONFIG_FILE)
