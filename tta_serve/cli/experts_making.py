"""The work of `tta experts`: what it says on the way, and what it measures of the result.

Importing this imports torch, which is why commands do it only when they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from adapters.deltas import Deltas
from adapters.errors import AdapterError, ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, Form, LowRankForm, OneBitForm
from adapters.files.facts import PartChoice, is_peft_folder
from adapters.files.paths import check_expert_folder
from adapters.files.peft_config import read_settings
from adapters.library.export import to_checkpoint, to_peft
from adapters.library.ingest import (
    Draft,
    OwnerNotes,
    Score,
    check_mergeable,
    check_twin_names,
    draft_compression,
    draft_folder,
    draft_merge,
    draft_twins,
    write_drafts,
)
from adapters.library.library import Library
from adapters.library.names import split_reference
from adapters.library.versions import VersionStore
from adapters.merge.interference import Interference, compare
from adapters.merge.merged import MergedDeltas, check_one_base, merge_experts
from adapters.merge.registry import METHODS
from adapters.merge.twin import build_twins
from tta_serve.cli.experts_output import print_report, print_rounding
from tta_serve.cli.options import console
from tta_serve.offline.base_model import PlainModel, measure_change
from tta_serve.offline.calibration import MEASURED, MergeCalibration
from tta_serve.offline.layer_loss import find_routing_layer, measure_loss

GOOD = "ok"
"""What is said of an expert whose weights are what was added."""


@dataclass(frozen=True)
class Recipe:
    """How experts are merged."""

    method: str
    experts: Sequence[str]
    """The experts' names."""
    weights_text: str | None
    """The weights as they were given, for the manifest."""
    weights: Sequence[float] | None
    """One for each expert; None for the method's own."""
    options: Mapping[str, str]
    """The method's options as text, by name."""
    seed: int
    """Of methods that draw at random."""

    @property
    def needs(self) -> frozenset[str]:
        """What the method must be given beside the experts; nothing for one that is unknown."""
        return METHODS[self.method].needs if self.method in METHODS else frozenset()


def read_form(
    rank: int | None = None,
    energy: float | None = None,
    *,
    one_bit: bool = False,
    parts: PartChoice | None = None,
    dense: bool = False,
) -> Form:
    """Return the form that options ask for; factors as they are if they ask for none."""
    if (rank is not None or energy is not None) + one_bit + dense > 1:
        raise typer.BadParameter(
            "--rank or --energy, --one-bit and --dense are different forms: give one"
        )
    if parts is not None and not one_bit:
        raise typer.BadParameter("--parts is a choice of --one-bit: give that too")
    if one_bit:
        return OneBitForm(parts or "all")
    return DenseForm() if dense else LowRankForm(rank, energy)


def check_folder(path: Path, form: Form, *, check_prompts: bool) -> None:
    """Raise BadParameter or LibraryError if what the path holds cannot be added in this form."""
    check_expert_folder(path)
    low_rank = isinstance(form, LowRankForm)
    is_lora = is_peft_folder(path) and not read_settings(path, path.name).needs_base
    if is_lora and not low_rank:
        raise typer.BadParameter("a LoRA is low-rank as it is: leave --one-bit and --dense out")
    if not is_lora and form == LowRankForm():
        what = "an adapter that is more than a LoRA" if is_peft_folder(path) else "a full fine-tune"
        raise typer.BadParameter(f"{what} needs one of --rank, --energy, --one-bit and --dense")
    if check_prompts and not low_rank:
        raise typer.BadParameter(
            "--check-prompts is for experts that slots serve: leave --one-bit and --dense out"
        )


def add_folder(  # noqa: PLR0913 - options of the command
    library: Path,
    path: Path,
    name: str,
    base: Path | None,
    form: Form,
    notes: OwnerNotes,
    *,
    check_prompts: bool,
) -> None:
    """Add a folder from outside to the library."""
    store = VersionStore(library)
    draft = draft_folder(path, name, _read_base(store, base), form, notes)
    if check_prompts and not draft.about.examples:
        raise typer.BadParameter("--check-prompts needs prompts: give --examples")
    _write(store, draft, check_prompts=check_prompts)


def compress_expert(
    library: Path, name: str, rank: int | None, energy: float | None, new_name: str
) -> None:
    """Add factors of an expert, of a rank or of the least one that keeps a share of the energy."""
    form = LowRankForm(rank, energy)
    draft = draft_compression(Library.open(library), name, form, new_name)
    _write(VersionStore(library), draft)


def merge_into(  # noqa: PLR0913 - options of the command
    library: Path, name: str, recipe: Recipe, base: Path | None, form: Form, notes: OwnerNotes
) -> None:
    """Add the merge of some of the library's experts."""
    store = VersionStore(library)
    opened = Library.open(library)
    wanted = base is not None or recipe.needs - {"generator"}
    checkpoint = _read_base(store, base) if wanted else None

    merged = _merge(opened, recipe, checkpoint)
    given = {"weights": recipe.weights_text} if recipe.weights_text else {}
    draft = draft_merge(
        opened,
        name,
        merged,
        form,
        notes,
        method=recipe.method,
        options={**merged.options, "seed": recipe.seed, **given},
        parents=recipe.experts,
        base=checkpoint,
    )
    _write(store, draft)


def split_twins(
    library: Path, prefix: str, names: Sequence[str], rank: int | None, shared_weight: float
) -> None:
    """Add what experts share, and what each of them knows beyond it, as factors of a rank.

    Without a rank they are exact, if the experts are known by factors.
    """
    opened = Library.open(library)
    check_twin_names(opened, prefix, names)
    twins = build_twins({name: opened.deltas(name) for name in names}, shared_weight)
    drafts = draft_twins(opened, prefix, twins, LowRankForm(rank), shared_weight)
    _write(VersionStore(library), *drafts)


def verify_experts(library: Path, names: Sequence[str]) -> dict[str, str]:
    """Read all weights of experts, of all if none is named.

    Returns:
        `GOOD` or what is wrong, by name.
    """
    opened = Library.open(library)
    found: dict[str, str] = {}
    for name in names or sorted([*opened.names, *opened.problems]):
        try:
            with console.status(f"Reading {name} ..."):
                opened.verify(name)
            found[name] = GOOD
        except AdapterError as error:
            found[name] = str(error)
    return found


def restore_expert(library: Path, reference: str) -> None:
    """Make an older version of an expert its newest one."""
    name, number = split_reference(reference)
    with console.status(f"Reading {reference} ..."):
        manifest = VersionStore(library).restore(name, number)
    print_report(manifest)


def move_base(library: Path, folder: Path) -> None:
    """Have the library remember another place of its base."""
    with console.status("Reading the base ..."):
        base = VersionStore(library).move_base(folder)
    console.print(f"the base is at {base.source}")


def export_peft(library: Path, name: str, folder: Path) -> None:
    """Write an expert as a PEFT folder."""
    with console.status(f"Writing {folder} ..."):
        to_peft(Library.open(library), name, folder)


def export_checkpoint(library: Path, name: str, folder: Path, base: Path | None) -> None:
    """Write the base with an expert merged into it as a checkpoint."""
    opened = Library.open(library)
    check_mergeable(opened, [name])
    deltas = opened.deltas(name)
    with console.status(f"Writing {folder} ..."):
        left = to_checkpoint(VersionStore(library).checkpoint(base), [(1.0, deltas)], folder)
    print_rounding(left)


def compare_experts(library: Path, a: str, b: str) -> list[Interference]:
    """Return how two experts interfere, by weight.

    Raises:
        ExpertError: They touch no weight in common.
    """
    opened = Library.open(library)
    with console.status(f"Comparing {a} and {b} ..."):
        rows = compare(opened.deltas(a), opened.deltas(b), names=(a, b))
    if not rows:
        raise ExpertError(
            f"{a!r} and {b!r} touch no weight in common: they cannot get in each other's way"
        )
    return rows


def _read_base(store: VersionStore, folder: Path | None) -> Checkpoint:
    with console.status("Reading the base ..."):
        return store.checkpoint(folder)


def _merge(library: Library, recipe: Recipe, base: Checkpoint | None) -> MergedDeltas:
    deltas = {name: library.deltas(name) for name in recipe.experts}
    check_one_base(deltas, base)
    given: dict[str, Any] = {}
    if base is not None and recipe.needs & MEASURED:
        prompts = {name: library.examples(name) for name in recipe.experts}
        with console.status("Letting each expert answer its example prompts ..."):
            given = dict(MergeCalibration(base, deltas, prompts).measure(recipe.needs))
    return merge_experts(
        recipe.method,
        [*deltas.values()],
        recipe.weights,
        recipe.options,
        base=base,
        seed=recipe.seed,
        **given,
    )


def _write(store: VersionStore, *drafts: Draft, check_prompts: bool = False) -> None:
    """Write drafts, all or none, and print what became of them."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        tasks = {draft.name: progress.add_task(draft.name, total=None) for draft in drafts}

        def tell(draft: Draft, count: int) -> None:
            total = len(draft.deltas.shapes)
            progress.update(tasks[draft.name], completed=count, total=total)

        def score(draft: Draft) -> Score:
            return _make_score(store, draft, check_prompts=check_prompts)

        manifests = write_drafts(store, drafts, score, tell)
    for manifest in manifests:
        print_report(manifest)


def _make_score(store: VersionStore, draft: Draft, *, check_prompts: bool) -> Score:
    """Return what measures a draft once it is written.

    First, on the example prompts, how far a form that loses something moves the next tokens'
    log-probabilities. Then, of factors for a given base, what they lose below the layer that
    routes; its log-probabilities only with `check_prompts`.
    """
    form = draft.form
    prompts = draft.about.examples
    is_exact = form in (LowRankForm(), DenseForm())
    load = cache(lambda: _load_model(store, draft.base))

    def score(written: Deltas) -> dict[str, float]:
        model = load() if prompts and not is_exact else None
        found = measure_change(model, draft.deltas, written, prompts) if model else {}
        if draft.base is not None and isinstance(form, LowRankForm):
            layer = find_routing_layer(draft.base)
            below = measure_loss(written, layer, prompts if check_prompts else (), load)
            found |= {"upper_layer": layer}
            found |= {f"upper_{name}": value for name, value in below.items()}
        return found

    return score


def _load_model(store: VersionStore, base: Checkpoint | None) -> PlainModel | None:
    """Return the base's model; None where it is not known or, which is said, not to be had."""
    if base is None and store.base is None:
        return None
    try:
        return PlainModel.load(base or store.checkpoint())
    except ExpertError as error:
        console.print(f"Log-probabilities are not compared: {error}")
        return None
