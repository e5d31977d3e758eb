"""The prompts that routing is learned from and judged by, as files hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.library import Library, read_examples
from router.gate_training import Samples
from router.policy import EVERYDAY as PACKAGED
from router.policy import RouterError
from tta_serve.early import EarlyFeatures

EVERYDAY = "everyday"


@dataclass(frozen=True)
class Prompts:
    """experts: by name   everyday: those that no expert should answer

    Raises RouterError if there are none of an expert, or none for every day.
    """

    experts: Mapping[str, list[str]]
    everyday: list[str]

    def __post_init__(self) -> None:
        if empty := [name for name, own in self.experts.items() if not own]:
            raise RouterError(f"there are no prompts of {', '.join(empty)}: add the expert again with --examples")
        if not self.everyday:
            raise RouterError(f"there are no everyday prompts: {EVERYDAY}.txt must have some")

    @classmethod
    def of(cls, library: Library) -> Prompts:
        """Every expert's own examples, and the packaged everyday prompts."""
        return cls({name: library.examples(name) for name in library.names}, read_examples(PACKAGED))

    @classmethod
    def read(cls, folder: Path, names: Iterable[str], *, held_out: bool = False) -> Prompts:
        """`<expert>.txt` for each expert, one prompt a line, and `everyday.txt`: else the packaged ones, unless held out.

        Raises RouterError if a file is missing, or there is one for nobody; LibraryError for one that cannot be read.
        """
        experts, there = set(names), {file.stem for file in folder.glob("*.txt")}
        if missing := sorted((experts | ({EVERYDAY} if held_out else set())) - there):
            raise RouterError(f"{folder} has no {missing[0]}.txt; it must have one for: {', '.join(sorted(experts))}")
        if unknown := sorted(there - experts - {EVERYDAY}):
            raise RouterError(f"{folder} has {unknown[0]}.txt, but the library serves: {', '.join(sorted(experts))}")
        found = {name: read_examples(folder / f"{name}.txt") for name in sorted(there)}
        return cls(
            {name: found[name] for name in sorted(experts)}, found[EVERYDAY] if EVERYDAY in there else read_examples(PACKAGED)
        )

    def __len__(self) -> int:
        return sum(map(len, self.experts.values())) + len(self.everyday)

    def samples(self, features: EarlyFeatures, watch: Callable[[list[str]], Iterable[str]]) -> Samples:
        """Their features in every form in which a server may read them. watch: hands prompts on, for a progress bar."""
        return Samples({n: features.both(watch(own)) for n, own in self.experts.items()}, features.both(watch(self.everyday)))


def read_labelled(file: Path, names: Iterable[str], split: str | None = None) -> list[tuple[str, str | None]]:
    """(prompt, expert) of each line {"prompt": ..., "task": an expert or null for none of them}; other keys are free.

    split: only lines whose "split" it is. Raises RouterError that names the line at fault, or if none is left.
    """
    found, known = [], set(names)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RouterError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt, task = row["prompt"], row["task"]
        except (ValueError, KeyError, TypeError):
            raise RouterError(f'{file}, line {number}: wanted {{"prompt": "...", "task": an expert or null}}') from None
        if not isinstance(prompt, str) or not prompt.strip() or (task is not None and task not in known):
            raise RouterError(f"{file}, line {number}: a prompt and one of {', '.join(sorted(known))} or null are wanted")
        if split is None or row.get("split") == split:
            found.append((prompt, task))
    if len({task is None for _, task in found}) < 2:
        raise RouterError(f"{file} must have prompts for experts and prompts for none of them (task null)")
    return found
