"""The file of the library that keeps what the base read in requests that pinned an expert."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files.atomic import write_atomically
from tta_serve.serving.routing.pinned_sample import SALT_BYTES, PinnedRows

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""By how much readings of one text may differ, in parts of their norm."""
_PARTS = ("keys", "tenants", "features")


@dataclass(frozen=True)
class PinnedContent:
    """What the file holds."""

    salt: bytes
    """The secret that conversations are numbered by."""
    controls: Tensor
    """[texts, 2, hidden], what the base reads in texts that are read at every start."""
    rows: Mapping[str, PinnedRows]
    """By the expert's digest."""

    def is_of(self, controls: Tensor) -> bool:
        """Return whether the base reads as it did when the file was written."""
        if self.controls.shape != controls.shape:
            return False
        return bool((self.controls - controls).norm() <= _TOLERANCE * controls.norm())


def load_pinned(file: Path) -> PinnedContent | None:
    """Return what a file holds, None if it is not there or cannot be used, which is logged."""
    try:
        return _read(load_file(file))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        logger.warning("%s is of no use, and pinned requests begin anew: %s", file, error)
        return None


def save_pinned(file: Path, content: PinnedContent) -> None:
    """Write the file, for its owner alone to read.

    Args:
        file: The file.
        content: What it is to hold.

    Raises LibraryError if the disk refuses.
    """
    tensors = {
        "salt": torch.tensor(list(content.salt), dtype=torch.uint8),
        "controls": content.controls.contiguous(),
    }
    for digest, rows in content.rows.items():
        for part in _PARTS:
            tensors[f"{digest}.{part}"] = getattr(rows, part).contiguous()

    def write(place: Path) -> None:
        try:
            save_file(tensors, place)
        except SafetensorError as error:
            raise LibraryError(f"{file} could not be written: {error}") from None
        place.chmod(0o600)

    write_atomically(file, write, replace=True)


def _read(tensors: Mapping[str, Tensor]) -> PinnedContent:
    """Read the tensors of a file. Raises KeyError or ValueError for what is none of ours."""
    salt = bytes(tensors["salt"].tolist())
    if len(salt) != SALT_BYTES:
        raise ValueError("its secret has another length")
    controls = tensors["controls"]
    digests = {name.rpartition(".")[0] for name in tensors} - {""}
    rows = {
        digest: PinnedRows(*(tensors[f"{digest}.{part}"] for part in _PARTS)) for digest in digests
    }
    wide = controls.shape[-1]
    if not all(own.usable and own.features.shape[-1] == wide for own in rows.values()):
        raise ValueError("its features have no form that is known")
    return PinnedContent(salt, controls, rows)
