"""A config, checked against what is on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adapters.deltas import ExpertDeltas
from adapters.errors import AdapterError, ExpertError, LibraryError
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft_names import BaseNames
from adapters.files.servable import ServableWeights
from adapters.library.library import Library
from adapters.library.twins import TwinTies, explain_orphans
from adapters.library.versions import VersionStore, check_fit
from router.probing import feature_layer
from tta_serve.config.access import UNSTATED, allows_licence
from tta_serve.config.sections import ServeConfig
from tta_serve.engine.options import BankOptions, DenseOptions
from tta_serve.exceptions import ConfigError
from tta_serve.serving.reading.catalog import Catalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartupPlan:
    """What a start needs to know of the library and the base."""

    config: ServeConfig
    digests: dict[str, str]
    layers: int
    """Of the base's decoder."""
    dense: DenseOptions | None = None
    """How dense experts are served, None if there are to be none."""

    @classmethod
    def of(cls, config: ServeConfig) -> "StartupPlan":
        """Read all experts and the base's config.

        An expert that cannot be used is left out, which is logged, unless there is no other.

        Raises AdapterError or ConfigError.
        """
        library = Library.open(config.library.path)
        check_base(library, config.model.source)
        experts, problems = library.read_experts()
        problems |= _leave_out_misfits(library, experts, config.model.source)
        for name in list(experts):
            if reason := explain_licence(library, name, config.library.licences):
                problems[name] = reason
                del experts[name]
        parts = {name: part for name, part in library.parts.items() if name in experts}
        for name, reason in explain_orphans(parts).items():
            problems[name] = reason
            del experts[name]
        for name, reason in problems.items():
            logger.warning("expert %s is left out: %s", name, reason)
        if problems and not experts:
            raise LibraryError("no expert can be used: " + "; ".join(problems.values()))
        layers = _depth(config.model.source)
        digests = {name: deltas.digest for name, deltas in experts.items()}
        try:
            ties = TwinTies.of(library.parts, digests)
            Catalog.of(config, tuple(experts), layers, ties=ties, alone=library.alone)
        except ConfigError as error:
            left_out = "".join(
                f"\nexpert {name} is left out: {problems[name]}" for name in problems
            )
            raise ConfigError(f"{error}{left_out}") from None
        placed = config.library.model_copy(update={"path": library.root.resolve()})
        has_dense = any(library.form(name) == "dense" for name in experts)
        dense = config.library.dense or (DenseOptions() if has_dense else None)
        return cls(config.model_copy(update={"library": placed}), digests, layers, dense)

    @property
    def tap_layer(self) -> int | None:
        """The layer whose input routes, None if no policy reads it."""
        return feature_layer(self.layers) if self.config.reads_features else None

    def check_engine(self, config: ServeConfig) -> None:
        """Raise ConfigError if another config needs what the engine was not started with."""
        had, wanted = self.config.gating_scores, config.gating_scores
        lacks = {
            "features of the prompt, which no policy read": (
                config.reads_features and not self.config.reads_features
            ),
            "factors to gate by, as no policy of type gated was there": wanted and not had,
            "trained gates, as no policy gated by them": "trained" in wanted - had,
        }
        for what, lacking in lacks.items():
            if lacking:
                raise ConfigError(
                    f"the new policies need {what} when the server started: start it again"
                )

    def engine_args(self) -> dict[str, Any]:
        """What vLLM's engine is told of the experts."""
        library = self.config.library
        experts = tuple(self.digests.items())
        scores = self.config.gating_scores
        bank = BankOptions(
            str(library.path),
            experts,
            self.tap_layer,
            library.capacity,
            gated=bool(scores),
            trained="trained" in scores,
            dense=self.dense,
        )
        return bank.engine_args(self.config.server.slots)


def explain_licence(library: Library, name: str, allowed: Sequence[str] | None) -> str:
    """Return why an expert's licence keeps it from being served, empty if it does not.

    Args:
        allowed: As `library.licences` of the config has them.
    """
    manifest = library.managed.get(name)
    licence = manifest.licence if manifest else None
    if allows_licence(allowed, licence):
        return ""
    return f"its licence is {licence or UNSTATED}; library.licences has: {', '.join(allowed or ())}"


def check_base(library: Library, source: str) -> None:
    """Check that the library was made for this base.

    A library of PEFT folders alone does not know its base. A hub's model is compared once it is in
    the cache.

    Raises LibraryError if the library's experts change other weights than those of `source`.
    """
    base = _find_base(source) if library.base_digest else None
    if base is not None:
        VersionStore(library.root).check_base(base)


def _leave_out_misfits(
    library: Library, experts: dict[str, ExpertDeltas], source: str
) -> dict[str, str]:
    """Take experts away that change what cannot be served of the base, where it is here.

    Returns why, by name.
    """
    try:
        base = _find_base(source)
        if base is None or not base.real_shapes:
            return {}
    except AdapterError:
        return {}  # its weights are in a form that vLLM reads, and we do not
    names, servable = BaseNames(base), ServableWeights.of(base)
    found = {}
    for name, deltas in list(experts.items()):
        form, shapes = library.form(name), deltas.shapes
        try:
            if form == "low_rank":
                own = {names.find(name, w, shape): shape for w, shape in shapes.items()}
                servable.check(name, own)
            elif form == "dense":
                check_fit(deltas, base)
        except ExpertError as error:
            found[name] = str(error)
            del experts[name]
    return found


def _find_base(source: str) -> Checkpoint | None:
    """Return the base's weights, None if they are a hub's and not in the cache."""
    folder = source_of(source)
    place = _cached(folder) if isinstance(folder, str) else folder
    return None if place is None else _opened(place)


@cache
def _opened(folder: Path) -> Checkpoint:
    """Kept, since its digest takes reading all of it."""
    return Checkpoint.open(folder)


def _cached(model_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def source_of(source: str) -> Path | str:
    """A local folder as a path, anything else as the Hugging Face id it is."""
    path = Path(source).expanduser()
    return path.resolve() if path.is_dir() else source


def _depth(source: str) -> int:
    """How many decoder layers the base has."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(source_of(source)))
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"model.source: {source!r} is neither a model folder nor a reachable model id:"
            f" {first_line}"
        ) from None
    return int(config.get_text_config().num_hidden_layers)
