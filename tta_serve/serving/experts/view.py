"""What a request sees of the library, made of what is on disk and in the engine."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import LibraryError
from adapters.files.facts import is_hidden
from adapters.library.entries import ENTRIES, scan_entries
from adapters.library.library import Library, read_examples
from router.policy import EVERYDAY, Context
from tta_serve.config import ServeConfig
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.routing.conversations import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.probe_cache import Engine, ProbeCache, ViewProbe

logger = logging.getLogger("ray.serve")


@dataclass
class View:
    """What a request sees of the library, from its start to its end."""

    generation: int
    digests: dict[str, str]
    catalog: Catalog
    router: PolicyDispatcher
    stale: tuple[str, ...] = ()
    """Entries whose experts have changed since."""
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    """The example prompts of each expert."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By policy, a short hash of what its decisions depend on: its settings, the experts, what was
    trained for them."""
    holders: int = 0
    """The requests that see it."""


@dataclass(frozen=True)
class Views:
    """What all views of a replica share."""

    config: ServeConfig
    layers: int
    """Of the base's decoder."""
    engine: Engine
    probes: ProbeCache
    conversations: Conversations

    async def make(
        self,
        generation: int,
        digests: dict[str, str],
        must: Collection[str],
        before: View | None = None,
    ) -> View:
        """A view of the experts with these digests, which the engine holds.

        Args:
            must: The policies that have to work with them.
            generation: The first has all entries that the config names.
            before: The view that it follows: an expert that it knows needs no folder any more.

        Raises AdapterError, ConfigError or RouterError.
        """
        library = await asyncio.to_thread(Library.open, self.config.library.path)
        saved, damaged = await asyncio.to_thread(scan_entries, library.root / ENTRIES)
        for reason in damaged.values():
            logger.warning("an entry is left out: %s", reason)
        valid = {
            name: entry.coefficients
            for name, entry in saved.items()
            if entry.digests.items() <= digests.items()
        }
        catalog = Catalog.of(
            self.config, tuple(sorted(digests)), self.layers, valid, strict=generation == 1
        )
        stale = (saved.keys() | self.config.library.entries.keys()) - catalog.entries.keys()
        probe = ViewProbe(self.engine, digests, self.probes)
        examples = {name: _read_prompts(library, name, before) for name in digests}
        everyday = read_examples(self.config.library.everyday or EVERYDAY)
        artifacts = (library.root / ENTRIES).parent
        context = Context(
            catalog.rules, examples, everyday, probe, digests, catalog.entries, artifacts
        )
        router = await PolicyDispatcher.create(
            self.config, context, probe, self.conversations, must
        )
        made = await asyncio.to_thread(_made, digests, artifacts)
        settings = {name: policy.model_dump_json() for name, policy in self.config.policies.items()}
        versions = {
            name: hashlib.sha256(f"{said} {made}".encode()).hexdigest()[:12]
            for name, said in settings.items()
        }
        return View(generation, digests, catalog, router, tuple(sorted(stale)), examples, versions)


def _read_prompts(library: Library, name: str, before: View | None) -> list[str]:
    """Return an expert's prompts; those of the view before where its folder can be read no more."""
    try:
        return library.examples(name)
    except LibraryError as error:
        if before is None or name not in before.examples:
            raise
        logger.warning("the prompts of %s stay as they were: %s", name, error)
        return before.examples[name]


def _made(digests: dict[str, str], artifacts: Path) -> str:
    """Return a hash of the experts, and of the JSON files that `tta router` wrote.

    Other artifacts name the digests of the experts they were made for.
    """
    found = hashlib.sha256(json.dumps(digests, sort_keys=True).encode())
    for file in sorted(artifacts.rglob("*.json")):
        if not is_hidden(file) and file.is_file():
            found.update(file.read_bytes())
    return found.hexdigest()
