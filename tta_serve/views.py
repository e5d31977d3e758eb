"""What a request sees of the library, and how that is made of what is on disk and in the engine."""

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.entries import ENTRIES, read_entries
from adapters.library import Library, read_examples
from router.policy import EVERYDAY, Context
from tta_serve.catalog import Catalog
from tta_serve.config import ServeConfig
from tta_serve.probes import Engine, ProbeCache, ViewProbe
from tta_serve.routing import Router
from tta_serve.sessions import Sessions


@dataclass
class View:
    """What a request sees of the library, from its start to its end.

    stale: entries whose experts have changed since   holders: the requests that see it
    versions: by policy, a short hash of what its decisions depend on: its settings, the experts, what was trained for them
    """

    generation: int
    digests: dict[str, str]
    catalog: Catalog
    router: Router
    stale: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    holders: int = 0


@dataclass(frozen=True)
class Views:
    """What all views of a replica share. layers: of the base's decoder"""

    config: ServeConfig
    layers: int
    engine: Engine
    probes: ProbeCache
    sessions: Sessions

    async def make(self, generation: int, digests: dict[str, str], must: Collection[str]) -> View:
        """A view of the experts with these digests, which the engine holds.

        must: the policies that have to work with them   generation: the first has all entries that the config names
        Raises AdapterError, ConfigError or RouterError.
        """
        library = await asyncio.to_thread(Library.open, self.config.library.path)
        saved = await asyncio.to_thread(read_entries, library.root / ENTRIES)
        valid = {name: entry.coefficients for name, entry in saved.items() if entry.digests.items() <= digests.items()}
        catalog = Catalog.of(self.config, tuple(sorted(digests)), self.layers, valid, strict=generation == 1)
        stale = (saved.keys() | self.config.library.entries.keys()) - catalog.entries.keys()
        probe = ViewProbe(self.engine, digests, self.probes)
        examples = {name: library.examples(name) for name in digests}
        everyday = read_examples(self.config.library.everyday or EVERYDAY)
        artifacts = (library.root / ENTRIES).parent
        context = Context(catalog.rules, examples, everyday, probe, digests, catalog.entries, artifacts)
        router = await Router.create(self.config, context, probe, self.sessions, must)
        made = await asyncio.to_thread(_made, digests, artifacts)
        settings = {name: policy.model_dump_json() for name, policy in self.config.policies.items()}
        versions = {name: hashlib.sha256(f"{said} {made}".encode()).hexdigest()[:12] for name, said in settings.items()}
        return View(generation, digests, catalog, router, tuple(sorted(stale)), versions)


def _made(digests: dict[str, str], artifacts: Path) -> str:
    """Of the experts, and of the JSON files that `tta router` wrote, which name the digests of the others."""
    found = hashlib.sha256(json.dumps(digests, sort_keys=True).encode())
    for file in sorted(artifacts.rglob("*.json")):
        found.update(file.read_bytes())
    return found.hexdigest()
