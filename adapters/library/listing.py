"""What a library holds, at a glance: no weight is read, and torch is not imported."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adapters.errors import AdapterError, ExpertError
from adapters.files.facts import is_hidden
from adapters.library.library import Library
from adapters.library.manifest import Manifest

_A_SIDE = (".lora_A.weight", ".lora_A.default.weight")


@dataclass(frozen=True)
class ListedExpert:
    """One expert, as far as its manifest or the headers of its files tell."""

    name: str
    version: int
    """0 for a PEFT folder, which has no versions."""
    form: str
    ranks: tuple[int, ...]
    """The ranks of its modules, each once, ascending; none in forms without factors."""
    size: int
    """The bytes of its weights on the disk."""
    kind: str
    """Where it came from, as `adapters.library.manifest.Source` names it."""
    examples: int
    """How many example prompts it has."""
    licence: str | None


@dataclass(frozen=True)
class Listing:
    """What a library holds."""

    experts: list[ListedExpert]
    """By name."""
    problems: dict[str, str]
    """Why others cannot be used, by name."""


def list_experts(root: Path) -> Listing:
    """List the experts of a library.

    Raises LibraryError if it cannot be opened.
    """
    library = Library.open(root)
    experts, problems = [], dict(library.problems)
    for name in library.names:
        manifest = library.managed.get(name)
        try:
            if manifest:
                experts.append(_describe_version(manifest, len(manifest.examples)))
            else:
                experts.append(_describe_folder(root / name, len(library.examples(name))))
        except AdapterError as error:
            problems[name] = str(error)
    return Listing(experts, problems)


def _describe_version(manifest: Manifest, examples: int) -> ListedExpert:
    report = manifest.report
    return ListedExpert(
        name=manifest.name,
        version=manifest.version,
        form=manifest.form,
        ranks=_order(report.ranks.values()),
        size=report.bytes_after,
        kind=manifest.source.kind,
        examples=examples,
        licence=manifest.licence,
    )


def _describe_folder(folder: Path, examples: int) -> ListedExpert:
    files = sorted(file for file in folder.glob("*.safetensors") if not is_hidden(file))
    return ListedExpert(
        name=folder.name,
        version=0,
        form="low_rank",
        ranks=_order(rank for file in files for rank in _read_ranks(file)),
        size=sum(file.stat().st_size for file in files),
        kind="peft",
        examples=examples,
        licence=None,
    )


def _read_ranks(file: Path) -> list[int]:
    """Read the rank of every A, [rank, in], from a file's header."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = [name for name in tensors.keys() if name.endswith(_A_SIDE)]  # noqa: SIM118
            return [tensors.get_slice(name).get_shape()[0] for name in names]
    except (OSError, SafetensorError) as error:
        raise ExpertError(f"{file} cannot be read: {error}") from None


def _order(ranks: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(ranks)))
