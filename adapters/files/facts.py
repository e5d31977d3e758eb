"""What is known of an expert's files before any tensor is read.

Nothing here imports torch, so that a library is listed in a fraction of the time that takes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A name from outside that is safe as a file's."""
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FORM_NAMES = ("low_rank", "one_bit", "dense")
"""The names of the classes of `adapters.files.delta_forms.Form`."""

PartChoice = Literal["all", "attention", "mlp"]
"""The matrices that the one_bit form keeps."""
LATER = {"later": True}
"""Marks the fields that manifests of earlier releases lack."""


def is_peft_folder(path: Path) -> bool:
    """Return whether a folder says that it holds a PEFT adapter."""
    return (path / CONFIG_FILE).is_file()


def resolve(path: Path) -> Path:
    """Return where a path leads, links followed; a link in a circle leads to itself."""
    return Path(os.path.realpath(path))


def is_hidden(path: Path) -> bool:
    """Return whether a system or a program left a file for itself, such as `._x` or `.DS_Store`."""
    return path.name.startswith(".")


@dataclass(frozen=True)
class PartReport:
    """What a form kept of the change of one part of a model."""

    energy: float
    """The share of the whole change's energy that is in the part."""
    kept: float
    """The share of the part's own energy that the files hold."""


@dataclass(frozen=True)
class DeltaReport:
    """What a form kept of the deltas written in it."""

    form: str
    """The form's name."""
    kept: Mapping[str, float]
    """The share of the energy, which is the squared Frobenius norm, by type of module, such as
    q_proj or norm."""
    dropped: Mapping[str, float]
    """The energy of each weight that the form does not hold."""
    ranks: Mapping[str, int]
    """The rank of each module, of the low_rank form."""
    bytes_before: int
    """The bytes of the touched weights in the fine-tune; of other deltas, those of their factors,
    or those of float32."""
    bytes_after: int
    """The bytes of the files."""
    parts: Mapping[str, PartReport] = field(default_factory=dict, metadata=LATER)
    """By part of the model, as `adapters.files.delta_forms.part_of` names them."""
    unserved: Mapping[str, str] = field(default_factory=dict, metadata=LATER)
    """Why slots leave out weights that the files hold, by weight, of the one_bit form."""
