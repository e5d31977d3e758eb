"""What a request sees of the library, made of what is on disk and in the engine."""

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.library.entries import ENTRIES, read_entries
from adapters.library.library import Library, read_examples
from router.policy import EVERYDAY, Context
from tta_serve.config import ServeConfig
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.routing.conversations import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.probe_cache import Engine, ProbeCache, ViewProbe


@dataclass
class View:
    """What a request sees of the library, from its start to its end."""

    generation: int
    digests: dict[str, str]
    catalog: Catalog
    router: PolicyDispatcher
    stale: tuple[str, ...] = ()
    """Entries whose experts have changed since."""
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

    async def make(self, generation: int, digests: dict[str, str], must: Collection[str]) -> View:
        """A view of the experts with these digests, which the engine holds.

        Args:
            must: The policies that have to work with them.
            generation: The first has all entries that the config names.

        Raises AdapterError, ConfigError or RouterError.
        """
        library = await asyncio.to_thread(Library.open, self.config.library.path)
        saved = await asyncio.to_thread(read_entries, library.root / ENTRIES)
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
        examples = {name: library.examples(name) for name in digests}
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
        return View(generation, digests, catalog, router, tuple(sorted(stale)), versions)


def _made(digests: dict[str, str], artifacts: Path) -> str:
    """Return a hash of the experts, and of the JSON files that `tta router` wrote.

    Other artifacts name the digests of the experts they were made for.
    """
    found = hashlib.sha256(json.dumps(digests, sort_keys=True).encode())
    for file in sorted(artifacts.rglob("*.json")):
        found.update(file.read_bytes())
    return found.hexdigest()
