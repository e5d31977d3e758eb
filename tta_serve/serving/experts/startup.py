"""A config, checked against what is on disk."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from router.probing import feature_layer
from tta_serve.config import ServeConfig
from tta_serve.engine.options import BankOptions
from tta_serve.exceptions import ConfigError
from tta_serve.serving.reading.catalog import Catalog


@dataclass(frozen=True)
class StartupPlan:
    """What a start needs to know of the library and the base."""

    config: ServeConfig
    digests: dict[str, str]
    layers: int
    """Of the base's decoder."""

    @classmethod
    def of(cls, config: ServeConfig) -> "StartupPlan":
        """Read all experts and the base's config. Raises AdapterError or ConfigError."""
        library = Library.open(config.library.path)
        check_base(library, config.model.source)
        layers = _depth(config.model.source)
        Catalog.of(config, library.names, layers)
        placed = config.library.model_copy(update={"path": library.root.resolve()})
        return cls(config.model_copy(update={"library": placed}), library.digests, layers)

    @property
    def tap_layer(self) -> int | None:
        """The layer whose input routes, None if no policy reads it."""
        return feature_layer(self.layers) if self.config.reads_features else None

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
        )
        return bank.engine_args(self.config.server.slots)


def check_base(library: Library, source: str) -> None:
    """Check that the library was made for this base.

    A library of PEFT folders alone does not know its base. A hub's model is compared once it is in
    the cache.

    Raises LibraryError if the library's experts change other weights than those of `source`.
    """
    folder = source_of(source) if library.base_digest else None
    if isinstance(folder, str):
        folder = _cached(folder)
    if folder is not None:
        VersionStore(library.root).check_base(_opened(folder))


@cache
def _opened(folder: Path) -> Checkpoint:
    """Kept, since its digest takes reading all of it."""
    return Checkpoint.open(folder)


def _cached(model_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except LocalEntryNotFoundError:
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
