"""What lies beside a model's weights, and whoever uses them needs: tokenizer, templates, code."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from adapters.errors import LibraryError
from adapters.files.safetensors_reader import PICKLES, stays_inside

_WEIGHTS = PICKLES | {
    ".safetensors",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".npz",
    ".npy",
    ".tflite",
    ".mlmodel",
    ".mlpackage",
    ".pickle",
    ".distcp",
    ".pyc",
}
"""Endings of weights, of a training's state, and of what Python compiled."""
# An index of weights, a training's state and logs, and adapters that transformers would load on
# top. A folder whose name matches is left out with all in it.
_LEFT_OUT = re.compile(
    r".*\.index\.json|optimizer(\..*)?|scheduler(\..*)?|trainer_state\.json|training_args\..*"
    r"|rng_state.*|global_step\d+|latest|zero_to_fp32\.py|checkpoint-\d+|events\.out\..*|runs"
    r"|wandb|__pycache__|adapter_config\.json|adapter_model\..*",
    re.IGNORECASE,
)
_MOST_FILES = 1000
_MOST_BYTES = 2 << 30
_DEPTH = 8


def copy_beside_weights(source: Path, target: Path) -> None:
    """Copy what a model's folder holds beside its weights, folders in it too.

    Left out are weights, an index of them, a training's state, and hidden files.

    Raises LibraryError for a link that leads out of the folder, and for more than 1000 files or
    2 GiB.
    """
    total = 0
    for count, file in enumerate(find_beside_weights(source), 1):
        total += file.stat().st_size
        if count > _MOST_FILES or total > _MOST_BYTES:
            raise LibraryError(
                f"{source} holds more than {_MOST_FILES} files or {_MOST_BYTES >> 30} GiB beside"
                " its weights: name a folder with nothing but the model"
            )
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def find_beside_weights(source: Path) -> Iterator[Path]:
    """Yield the files that lie beside a model's weights, by name.

    Raises LibraryError for a link that leads out of the folder.
    """
    yield from _walk(source, source, _DEPTH)


def _walk(source: Path, folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in _WEIGHTS:
            continue
        if _LEFT_OUT.fullmatch(path.name):
            continue
        if not stays_inside(source, path):
            raise LibraryError(f"{path} leads out of {source}; copy it there instead of linking it")
        if path.is_dir():
            # A folder that is a link could lead back to where it is.
            if depth and not path.is_symlink():
                yield from _walk(source, path, depth - 1)
        elif path.is_file():
            yield path
