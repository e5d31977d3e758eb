"""The prompts that routing is learned from and judged by, as files hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.library.library import Library, read_examples
from router.policy import EVERYDAY as PACKAGED
from tta_serve.exceptions import PromptFileError
from tta_serve.offline.features import EarlyFeatures
from tta_serve.offline.train_gate import GateSamples

EVERYDAY = "everyday"
"""The name, without .txt, of the file of prompts that no expert should answer."""


@dataclass(frozen=True)
class Prompts:
    """Prompts by the expert that should answer them, and everyday ones.

    Raises:
        PromptFileError: There are none of an expert, or none for every day.
    """

    experts: Mapping[str, list[str]]
    """By name."""
    everyday: list[str]
    """Those that no expert should answer."""
    both: Mapping[tuple[str, str], list[str]] = field(default_factory=dict)
    """Those that want the work of two experts, by their names."""

    def __post_init__(self) -> None:
        if empty := [name for name, own in self.experts.items() if not own]:
            raise PromptFileError(
                f"there are no prompts of {', '.join(empty)}: add the expert again with --examples"
            )
        if not self.everyday:
            raise PromptFileError(f"there are no everyday prompts: {EVERYDAY}.txt must have some")

    @classmethod
    def from_library(cls, library: Library, names: Iterable[str] | None = None) -> Prompts:
        """Take experts' own examples, and the packaged everyday prompts.

        Args:
            library: Where the experts are.
            names: Of the experts; by default all that policies choose among.
        """
        chosen = library.classes if names is None else names
        experts = {name: library.examples(name) for name in chosen}
        return cls(experts, read_examples(PACKAGED))

    @classmethod
    def read(cls, folder: Path, names: Iterable[str], *, held_out: bool = False) -> Prompts:
        """Read `<expert>.txt` for each expert, one prompt a line, and `everyday.txt`.

        There may be prompts that want two experts, in `<expert>+<expert>.txt`.

        Args:
            folder: Where the files are.
            names: Of the experts.
            held_out: Whether `everyday.txt` must be there; else the packaged prompts stand in for
                it.

        Raises:
            PromptFileError: A file is missing, or there is one for nobody.
            LibraryError: A file cannot be read.
        """
        experts = set(names)
        stems = {file.stem for file in folder.glob("*.txt")}
        pairs = {stem: _read_pair(stem, experts) for stem in stems}
        both = {stem: pair for stem, pair in pairs.items() if pair is not None}
        there = stems - both.keys()
        if missing := sorted((experts | ({EVERYDAY} if held_out else set())) - there):
            raise PromptFileError(
                f"{folder} has no {missing[0]}.txt; it must have one for:"
                f" {', '.join(sorted(experts))}"
            )
        if unknown := sorted(there - experts - {EVERYDAY}):
            raise PromptFileError(
                f"{folder} has {unknown[0]}.txt, but the library serves:"
                f" {', '.join(sorted(experts))}"
            )
        found = {name: read_examples(folder / f"{name}.txt") for name in sorted(there)}
        everyday = found[EVERYDAY] if EVERYDAY in there else read_examples(PACKAGED)
        return cls(
            {name: found[name] for name in sorted(experts)},
            everyday,
            {both[stem]: read_examples(folder / f"{stem}.txt") for stem in sorted(both)},
        )

    def __len__(self) -> int:
        labelled = (*self.experts.values(), *self.both.values(), self.everyday)
        return sum(map(len, labelled))

    def read_samples(
        self, features: EarlyFeatures, watch: Callable[[list[str]], Iterable[str]]
    ) -> GateSamples:
        """Read their features in every form in which a server may read them.

        Args:
            features: What reads.
            watch: Hands prompts on, for a progress bar.
        """
        return GateSamples(
            {n: features.read_all_forms(watch(own)) for n, own in self.experts.items()},
            features.read_all_forms(watch(self.everyday)),
            {pair: features.read_all_forms(watch(own)) for pair, own in self.both.items()},
        )


def _read_pair(stem: str, experts: Collection[str]) -> tuple[str, str] | None:
    """Return the two experts that a file is named after, None if it is not named after two."""
    first, _, second = stem.partition("+")
    return (first, second) if {first, second} <= set(experts) and first != second else None


def read_voices(folder: Path, names: Iterable[str]) -> dict[str, Prompts]:
    """Read `<voice>.jsonl` for each voice, with lines as `read_labelled` takes them.

    Args:
        folder: Where the files are.
        names: Of the experts.

    Raises:
        PromptFileError: There are no two such files, a line is wrong, or a voice has no prompt for
            an expert.
    """
    experts = sorted(names)
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        rows = read_labelled(file, experts)
        own = {name: [prompt for prompt, task in rows if task == name] for name in experts}
        if silent := [name for name, prompts in own.items() if not prompts]:
            raise PromptFileError(f"{file} has no prompt for {', '.join(silent)}")
        found[file.stem] = Prompts(own, [prompt for prompt, task in rows if task is None])
    if len(found) < 2:
        raise PromptFileError(
            f"{folder} must have a file <voice>.jsonl for each of two voices or more: one is left"
            " out at a time"
        )
    return found


def read_labelled(
    file: Path, names: Iterable[str], split: str | None = None
) -> list[tuple[str, str | None]]:
    """Read (prompt, expert) of each line of a file of JSON objects.

    A line is {"prompt": ..., "task": an expert, or null for none of them}; other keys are free.

    Args:
        file: One JSON object a line.
        names: Of the experts.
        split: Only lines with this "split" are taken.

    Raises:
        PromptFileError: A line is wrong, which the message names, or none is left.
    """
    found = []
    known = set(names)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt = row["prompt"]
            task = row["task"]
        except (ValueError, KeyError, TypeError):
            raise PromptFileError(
                f'{file}, line {number}: wanted {{"prompt": "...", "task": an expert or null}}'
            ) from None
        if (
            not isinstance(prompt, str)
            or not prompt.strip()
            or (task is not None and task not in known)
        ):
            raise PromptFileError(
                f"{file}, line {number}: a prompt and one of {', '.join(sorted(known))} or null are"
                " wanted"
            )
        if split is None or row.get("split") == split:
            found.append((prompt, task))
    if len({task is None for _, task in found}) < 2:
        raise PromptFileError(
            f"{file} must have prompts for experts and prompts for none of them (task null)"
        )
    return found
