"""The library, a folder whose subfolders are experts, as it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import ExpertError, LibraryError
from adapters.files.facts import CONFIG_FILE, DeltaReport, is_peft_folder
from adapters.library.manifest import Manifest, Source
from adapters.library.versions import VersionStore, check_inside, check_name

# What reads tensors is imported where that is done: to list a library takes no torch.
if TYPE_CHECKING:
    from adapters.deltas import Deltas
    from adapters.expert import Expert
    from adapters.files.checkpoint import Checkpoint

EXAMPLES_FILE = "examples.txt"


@dataclass(frozen=True)
class Library:
    """The experts under `root`, in the order of their names.

    `root/<name>/` is either a PEFT LoRA folder, where an optional `examples.txt` holds example
    prompts, one a line; or it holds versions, as `adapters.library.versions` writes them.
    """

    root: Path
    names: tuple[str, ...]
    """The names of the experts that slots can serve."""
    managed: Mapping[str, Manifest] = field(default_factory=dict)
    """The current version of each expert that has versions, in whatever form, by name."""

    @classmethod
    def open(cls, root: Path | str) -> Library:
        """Find the experts of a folder, without reading their weights.

        Raises LibraryError if it has none, or one with an unusable name or place.
        """
        root = Path(root).expanduser()
        if not root.is_dir():
            raise LibraryError(
                f"library {root} is not a folder; wanted a folder of PEFT adapter folders"
            )
        plain = [p.name for p in root.iterdir() if p.is_dir() and is_peft_folder(p)]
        for name in plain:
            _check_plain(root, name)
        store = VersionStore(root)
        managed = {name: current for name in store.names if (current := store.current(name))}
        if not plain and not managed:
            raise LibraryError(
                f"library {root} holds no PEFT adapter folder (one with an adapter_config.json) and"
                " nothing that was added"
            )
        served = [name for name, manifest in managed.items() if manifest.form == "low_rank"]
        return cls(root, tuple(sorted([*plain, *served])), managed)

    def expert(self, name: str) -> Expert:
        """Read and check an expert.

        Raises ExpertError if it is not there or cannot be represented exactly.
        """
        from adapters.files.peft import load_peft

        manifest = self.managed.get(name)
        if manifest and manifest.form != "low_rank":
            raise ExpertError(
                f"expert {name!r} has the form {manifest.form}, which slots cannot serve; "
                f"make factors of it: tta experts compress {name} --rank R"
            )
        if name not in self.names:
            raise ExpertError(
                f"the library {self.root} holds no expert {name!r}; it holds:"
                f" {', '.join(self.all_names)}"
            )
        if manifest:
            return VersionStore(self.root).expert(manifest)
        return load_peft(self.root / name, name)

    def deltas(self, name: str) -> Deltas:
        """Return what an expert of any form changes.

        Raises ExpertError as `expert` does, but for the form.
        """
        from adapters.deltas import LowRankDeltas

        manifest = self.managed.get(name)
        if manifest:
            return VersionStore(self.root).deltas(manifest)
        return LowRankDeltas(self.expert(name))

    def manifest(self, name: str) -> Manifest:
        """Return what is known of an expert of any form.

        A PEFT folder has no versions: it is read, and counts as version 0.

        Raises ExpertError as `deltas` does.
        """
        return self.managed.get(name) or self._plain(name)

    def verify(self, name: str) -> None:
        """Read all weights that the library has of an expert, in all versions.

        Raises ExpertError or LibraryError if they are not what was added.
        """
        if name in self.managed:
            VersionStore(self.root).verify(name)
        else:
            self.expert(name)

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """All experts that slots can serve, by name.

        Raises ExpertError for the first that cannot be represented exactly.
        """
        return {name: self.expert(name) for name in self.names}

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests of all experts, in whatever form, by name.

        Raises ExpertError as `manifest` does.
        """
        return {name: self.manifest(name) for name in self.all_names}

    @property
    def all_names(self) -> list[str]:
        """The names of all experts, also of those in forms that slots cannot serve."""
        return sorted({*self.names, *self.managed})

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each expert that slots can serve, by name."""
        return {name: expert.digest for name, expert in self.experts.items()}

    @property
    def base_digest(self) -> str | None:
        """The digest of the base that the experts change.

        None where there are only PEFT folders, which do not say.
        """
        base = VersionStore(self.root).base
        return base.digest if base else None

    def examples(self, name: str) -> list[str]:
        """Return the example prompts of an expert, possibly none."""
        if name in self.managed:
            return list(self.managed[name].examples)
        file = self.root / name / EXAMPLES_FILE
        return read_examples(file) if file.is_file() else []

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts.values())

    def _plain(self, name: str) -> Manifest:
        """Return the manifest that a PEFT folder would have."""
        folder, expert = self.root / name, self.expert(name)
        ranks = {module: factor.rank for module, factor in expert.factors.items()}
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Manifest(
            source=Source("peft", str(folder.resolve())),
            examples=tuple(self.examples(name)),
            name=name,
            version=0,
            digest=expert.digest,
            base=None,
            report=DeltaReport("low_rank", {}, {}, ranks, size, size),
            created=datetime.fromtimestamp((folder / CONFIG_FILE).stat().st_mtime, UTC).isoformat(
                timespec="seconds"
            ),
        )


def open_expert_folder(path: Path, base: Checkpoint) -> tuple[Source, Deltas]:
    """Read a folder from outside: a PEFT LoRA, or the base after a full fine-tune.

    Returns where the expert comes from and what it changes.

    Raises ExpertError for a folder that is neither, or that cannot be represented exactly.
    """
    from adapters.deltas import LowRankDeltas
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.finetune import TaskVector
    from adapters.files.peft import load_peft

    if is_peft_folder(path):
        return Source("peft", str(path.resolve())), LowRankDeltas(load_peft(path))
    return Source("finetune", str(path.resolve())), TaskVector(base, Checkpoint.open(path))


def read_examples(file: Path) -> list[str]:
    """Return the prompts in a file, one a line, without blank lines.

    Raises LibraryError if it cannot be read as UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryError(f"{file} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _check_plain(root: Path, name: str) -> None:
    """Raise LibraryError for a PEFT folder of an unusable name, or with files that lead out."""
    for file in check_name(root, name).iterdir():
        check_inside(root, file)
