"""The experts and the prompts that commands of `tta router` learn from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tta_serve.cli.options import console, open_usable, show_progress

if TYPE_CHECKING:
    from adapters.expert import Expert
    from adapters.library.library import Library
    from tta_serve.offline.answered_prompts import AnsweredPrompt
    from tta_serve.offline.base_model import PlainModel
    from tta_serve.offline.mixed_model import MixedModel, Sample

Experts = Annotated[
    str | None, typer.Option("--experts", help="Names with commas between; all if left out.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what has the name.")]


def load_base(root: Path, base: Path | None) -> PlainModel:
    """Load the library's base in transformers."""
    from adapters.library.versions import VersionStore
    from tta_serve.offline.base_model import PlainModel

    with console.status("Reading the base ..."):
        return PlainModel.load(VersionStore(root).checkpoint(base))


@dataclass(frozen=True)
class SampledExperts:
    """Experts, a model that mixes them, and what each answers to its own prompts."""

    mixed: MixedModel
    samples: list[list[Sample]]
    """By expert, its prompts with its own answers."""
    experts: list[Expert]
    """The experts as the library has them."""


@dataclass(frozen=True)
class ReferencedExperts:
    """A model that mixes experts, and prompts with the answers that are wanted of it."""

    mixed: MixedModel
    groups: list[list[AnsweredPrompt]]
    """The prompts, by the task that they are for."""

    @property
    def prompts(self) -> list[AnsweredPrompt]:
        """All prompts."""
        return [prompt for group in self.groups for prompt in group]


def sample_for(  # noqa: PLR0913 - options of the commands
    root: Path, base: Path | None, chosen: str | None, prompts: int, answer: int, new: str
) -> SampledExperts:
    """Let each expert answer its prompts, once the new entry's name is known to be free.

    Args:
        root: The library's folder.
        base: The base's folder, if it is not where it was.
        chosen: The experts' names with commas between; all if None.
        prompts: How many of each expert's example prompts are used.
        answer: How many tokens an answer may have.
        new: The name of what will be made.

    Raises:
        LibraryError: The name cannot be used, or an expert has no prompts.
    """
    return sample_experts(_open_for(root, new), root, base, chosen, prompts, answer)


def read_references(
    root: Path, base: Path | None, chosen: str | None, examples: Path, new: str
) -> ReferencedExperts:
    """Read prompts with wanted answers, once the new entry's name is known to be free.

    Args:
        root: The library's folder.
        base: The base's folder, if it is not where it was.
        chosen: The experts' names with commas between; all if None.
        examples: JSON lines with `prompt` and `want`, and `task` where there are several.
        new: The name of what will be made.

    Raises:
        LibraryError: The name cannot be used.
        ConfigError: The file cannot be read, or a line has no wanted answer.
    """
    from tta_serve.evaluation.questions import read_suite
    from tta_serve.exceptions import ConfigError
    from tta_serve.offline.answered_prompts import append_answer
    from tta_serve.offline.mixed_model import MixedModel

    opened = _open_for(root, new)
    names = choose_experts(opened, chosen)
    questions = read_suite(examples, "examples").questions
    if silent := next((q for q in questions if not (q.want or "").strip()), None):
        raise ConfigError(
            f"{examples}: {silent.prompt[:60]!r} has no wanted answer; wanted a line such as"
            ' {"prompt": "What is 3 + 4?", "want": "7"}'
        )
    plain = load_base(root, base)
    groups: dict[str | None, list[AnsweredPrompt]] = defaultdict(list)
    for question in questions:
        groups[question.task].append(append_answer(plain, question.prompt, question.want or ""))
    return ReferencedExperts(
        MixedModel(plain, [opened.expert(name) for name in names]), [*groups.values()]
    )


def _open_for(root: Path, new: str) -> Library:
    """Open a library, once the name of what will be made is known to be free."""
    from adapters.errors import LibraryError
    from adapters.library.names import check_name

    opened = open_usable(root)
    check_name(root, new)
    if new in opened.names:
        raise LibraryError(f"{new!r} is an expert: an entry needs another name")
    return opened


def sample_experts(  # noqa: PLR0913 - options of the commands
    opened: Library,
    root: Path,
    base: Path | None,
    chosen: str | None,
    prompts: int,
    answer: int,
    *,
    canonical: bool = False,
) -> SampledExperts:
    """Let each expert answer its prompts.

    Args:
        opened: The library, whose folder is `root`.
        root: The library's folder.
        base: The base's folder, if it is not where it was.
        chosen: The experts' names with commas between; all if None.
        prompts: How many of each expert's example prompts are used.
        answer: How many tokens an answer may have.
        canonical: Whether the model is made with the canonical forms of their factors.

    Raises:
        LibraryError: An expert has no prompts.
    """
    from adapters.errors import LibraryError
    from adapters.low_rank import make_canonical_expert
    from tta_serve.offline.mixed_model import MixedModel

    names = choose_experts(opened, chosen)
    asked = {name: opened.examples(name)[:prompts] for name in names}
    if silent := [name for name, own in asked.items() if not own]:
        raise LibraryError(
            f"{', '.join(silent)}: without example prompts; add the expert again with --examples"
        )
    experts = [opened.expert(name) for name in names]
    mixed = MixedModel(
        load_base(root, base), [make_canonical_expert(e) if canonical else e for e in experts]
    )
    samples: list[list[Sample]] = [[] for _ in names]
    with show_progress("Asking the experts", sum(map(len, asked.values()))) as tell:
        for k, own in enumerate(asked.values()):
            for prompt in own:
                samples[k].append(mixed.make_sample(k, prompt, answer))
                tell()
    return SampledExperts(mixed, samples, experts)


def choose_experts(library: Library, names: str | None) -> list[str]:
    """Return the experts named, in the library's order.

    Raises:
        BadParameter: The library does not serve one of them.
    """
    known = library.low_rank_names
    whole = [name for name in known if name not in library.parts]
    wanted = set(whole) if names is None else {name.strip() for name in names.split(",")}
    if unknown := sorted(wanted - set(known)):
        raise typer.BadParameter(
            f"--experts: {', '.join(unknown)}; the low-rank experts are {', '.join(known)}"
        )
    if parts := sorted(wanted & library.parts.keys()):
        raise typer.BadParameter(
            f"--experts: {', '.join(parts)} answer nothing alone, as parts of Twin-Merging; there"
            f" are: {', '.join(whole) or 'no others'}"
        )
    return [name for name in known if name in wanted]
