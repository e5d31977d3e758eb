"""A library: a folder whose subfolders are experts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adapters.errors import ExpertError, LibraryError
from adapters.expert import Expert
from adapters.peft_format import is_peft_folder, load_peft

EXAMPLES_FILE = "examples.txt"
RESERVED_NAMES = frozenset({"base", "auto"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Library:
    """The experts under `root`, in the order of their names.

    `root/<name>/` is a PEFT LoRA folder; an optional `examples.txt` in it holds example prompts, one a line.
    """

    root: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, root: Path | str) -> "Library":
        """Find the experts of a folder. Raises LibraryError if it has none, or one with an unusable name or place."""
        root = Path(root).expanduser()
        if not root.is_dir():
            raise LibraryError(f"library {root} is not a folder; wanted a folder of PEFT adapter folders")
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and is_peft_folder(p))
        if not names:
            raise LibraryError(f"library {root} holds no PEFT adapter folder (one with an adapter_config.json)")
        for name in names:
            _check_name(root, name)
        return cls(root, tuple(names))

    def expert(self, name: str) -> Expert:
        """Read and check an expert. Raises ExpertError if it is not there or cannot be represented exactly."""
        if name not in self.names:
            raise ExpertError(f"the library {self.root} holds no expert {name!r}; it holds: {', '.join(self.names)}")
        return load_peft(self.root / name, name)

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """All experts. Raises ExpertError for the first that cannot be represented exactly."""
        return {name: self.expert(name) for name in self.names}

    @property
    def digests(self) -> dict[str, str]:
        return {name: expert.digest for name, expert in self.experts.items()}

    def examples(self, name: str) -> list[str]:
        """Example prompts of an expert, possibly none."""
        file = self.root / name / EXAMPLES_FILE
        return [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts.values())


def _check_name(root: Path, name: str) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise LibraryError(
            f"expert name {name!r}: letters, digits, dot, dash and underscore are allowed; {reserved} are taken"
        )
    if not (root / name).resolve().is_relative_to(root.resolve()):
        raise LibraryError(f"expert {name!r} leads out of the library {root}; copy the folder instead of linking it")
