"""What a request sees of the library, made of what is on disk and in the engine."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from adapters.coefficient import Coefficient
from adapters.errors import LibraryError
from adapters.files.facts import is_hidden
from adapters.library.entries import ENTRIES, Entry, scan_entries
from adapters.library.library import Library, read_examples
from adapters.library.twins import TwinTies
from router.errors import RouterError
from router.policy import EVERYDAY, Context
from tta_serve.config.access import TenantConfig
from tta_serve.config.sections import ServeConfig
from tta_serve.serving.experts.expert_facts import ExpertTable
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.example_readings import ExampleProbe, ExampleReadings
from tta_serve.serving.routing.pinned_sample import PinnedSample
from tta_serve.serving.routing.probe_cache import Engine, ProbeCache, ViewProbe

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass
class View:
    """What a request sees of the library, from its start to its end."""

    digests: dict[str, str]
    catalog: Catalog
    router: PolicyDispatcher
    generation: int = 0
    stale: tuple[str, ...] = ()
    """Entries whose experts have changed since."""
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    """The example prompts of each expert."""
    pinned: Mapping[str, int] = field(default_factory=dict)
    """How many requests that pinned an expert its policies know, by expert."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By policy, a short hash of what its decisions depend on: its settings, the experts, what was
    trained for them, and the requests that pinned them."""
    experts: ExpertTable = field(default_factory=ExpertTable)
    """What else is known of its experts."""
    holders: int = 0
    """The requests that see it, or what a tenant sees of it."""
    tenants: dict[str, "View"] = field(default_factory=dict)
    """What those tenants see of it that may not see all."""
    tenant: str | None = None
    """The tenant who sees this and no more, None for what everybody else sees."""
    whole: "View | None" = None
    """What that is a part of."""


@dataclass(frozen=True)
class Views:
    """What all views of a replica share."""

    config: ServeConfig
    layers: int
    """Of the base's decoder."""
    engine: Engine
    probes: ProbeCache
    conversations: Conversations
    readings: ExampleReadings = field(default_factory=ExampleReadings)
    pinned: PinnedSample | None = None
    """What is kept of requests that pinned an expert, None for nothing."""
    config_version: int = 1
    """Which one of those since the start the config is."""

    async def make(
        self,
        generation: int,
        digests: dict[str, str],
        must: Collection[str],
        before: View | None = None,
        *,
        strict: bool = False,
    ) -> View:
        """A view of the experts with these digests, which the engine holds.

        Args:
            must: The policies that have to work with them.
            generation: The first has all entries that the config names.
            before: The view that it follows: an expert that it knows needs no folder any more.
            strict: Whether this one has them too.

        Raises AdapterError, ConfigError or RouterError.
        """
        pinned = self._read_pinned(digests)
        shelf = await asyncio.to_thread(_Shelf.read, self.config, digests, before)
        shelf = replace(shelf, pinned=pinned)
        whole = await self._make(
            self.config, digests, shelf, must, strict=strict or generation == 1
        )
        saved = shelf.entries.keys() | self.config.library.entries.keys()
        whole.generation = generation
        whole.stale = tuple(sorted(saved - whole.catalog.entries.keys()))
        for name, tenant in self.config.access.tenants.items():
            whole.tenants[name] = await self._narrow(name, tenant, whole, shelf)
        await asyncio.to_thread(self.readings.save)
        return whole

    def _read_pinned(self, digests: Mapping[str, str]) -> dict[str, Tensor] | None:
        """Return what is kept of pinned requests, by expert."""
        if self.pinned is None:
            return None
        found = {name: self.pinned.read(digest) for name, digest in digests.items()}
        return {name: features for name, features in found.items() if features is not None}

    async def _narrow(self, name: str, tenant: TenantConfig, whole: View, shelf: "_Shelf") -> View:
        """Return what a tenant sees: the same as on a server that has nothing but its experts.

        What its experts share with others goes with them.
        """
        facts, parts = shelf.experts.facts, shelf.experts.parts
        own = {expert for expert in facts if tenant.permits(expert, facts[expert].licence)}
        own |= {parts[expert].shared for expert in own & parts.keys()}
        config = self.config.narrow(tenant, own)
        named = shelf.entries if tenant.entries is None else tenant.entries
        narrow = replace(
            shelf,
            entries=_select(shelf.entries, named),
            experts=shelf.experts.narrow(own),
            examples=_select(shelf.examples, own),
            pinned=None if shelf.pinned is None else _select(shelf.pinned, own),
        )
        try:
            view = await self._make(
                config,
                {expert: whole.digests[expert] for expert in sorted(own)},
                narrow,
                config.needed,
                strict=False,
            )
        except RouterError as error:
            raise RouterError(f"for tenant {name!r}: {error}") from None
        # Why a policy cannot work may name experts of others.
        unusable = dict.fromkeys(view.router.unusable, "it is not for them")
        view.router = replace(view.router, unusable=unusable)
        view.generation, view.tenant, view.whole = whole.generation, name, whole
        return view

    async def _make(
        self,
        config: ServeConfig,
        digests: dict[str, str],
        shelf: "_Shelf",
        must: Collection[str],
        *,
        strict: bool,
    ) -> View:
        catalog = Catalog.of(
            config,
            tuple(sorted(digests)),
            self.layers,
            _find_valid(shelf.entries, digests),
            TwinTies.of(shelf.experts.parts, digests),
            alone=shelf.experts.alone,
            strict=strict,
        )
        probe = ViewProbe(self.engine, digests, self.probes, shelf.experts.forms)
        context = Context(
            catalog.rules,
            shelf.examples,
            shelf.everyday,
            ExampleProbe(probe, self.readings),
            digests,
            catalog.entries,
            shelf.artifacts,
            forms=shelf.experts.forms,
            invocations=shelf.experts.invocations,
            pinned=shelf.pinned,
        )
        router = await PolicyDispatcher.create(config, context, probe, self.conversations, must)
        made = await asyncio.to_thread(_made, digests, shelf.artifacts, shelf.pinned or {})
        return View(
            digests=digests,
            catalog=catalog,
            router=router,
            examples=shelf.examples,
            pinned={name: len(features) for name, features in (shelf.pinned or {}).items()},
            versions=self._name_versions(made),
            experts=shelf.experts,
        )

    def _name_versions(self, made: str) -> dict[str, str]:
        """Return the version of each policy, by name.

        Args:
            made: A hash of the experts, of what was trained for them, and of pinned requests.
        """
        settings = {name: policy.model_dump_json() for name, policy in self.config.policies.items()}
        return {
            name: hashlib.sha256(f"{said} {made}".encode()).hexdigest()[:12]
            for name, said in settings.items()
        }


@dataclass(frozen=True)
class _Shelf:
    """What is on disk of the experts of a view."""

    entries: Mapping[str, Entry]
    experts: ExpertTable
    examples: Mapping[str, list[str]]
    everyday: list[str]
    artifacts: Path
    """The folder of what `tta router` made."""
    pinned: Mapping[str, Tensor] | None = None
    """What the base read in requests that pinned each expert, None where none are kept."""

    @classmethod
    def read(cls, config: ServeConfig, digests: Mapping[str, str], before: View | None) -> "_Shelf":
        library = Library.open(config.library.path)
        return cls(
            entries=_read_entries(library),
            experts=ExpertTable.read(library, digests, before.experts if before else ExpertTable()),
            examples={name: _read_prompts(library, name, before) for name in digests},
            everyday=read_examples(config.library.everyday or EVERYDAY),
            artifacts=(library.root / ENTRIES).parent,
        )


def _select(values: Mapping[str, _T], names: Collection[str]) -> dict[str, _T]:
    """Return the values of these names, as far as there are any."""
    return {name: value for name, value in values.items() if name in names}


def _read_entries(library: Library) -> dict[str, Entry]:
    """Return the library's entries that can be used."""
    saved, damaged = scan_entries(library.root / ENTRIES)
    for reason in damaged.values():
        logger.warning("an entry is left out: %s", reason)
    return saved


def _find_valid(
    saved: Mapping[str, Entry], digests: dict[str, str]
) -> dict[str, Mapping[str, Coefficient]]:
    """Return the entries whose experts are those that are served."""
    return {
        name: entry.coefficients
        for name, entry in saved.items()
        if entry.digests.items() <= digests.items()
    }


def _read_prompts(library: Library, name: str, before: View | None) -> list[str]:
    """Return an expert's prompts; those of the view before where its folder can be read no more."""
    try:
        return library.examples(name)
    except LibraryError as error:
        if before is None or name not in before.examples:
            raise
        logger.warning("the prompts of %s stay as they were: %s", name, error)
        return before.examples[name]


def _made(digests: dict[str, str], artifacts: Path, pinned: Mapping[str, Tensor]) -> str:
    """Return a hash of the experts, of pinned requests, and of JSON files that `tta router` wrote.

    Other artifacts name the digests of the experts they were made for.
    """
    found = hashlib.sha256(json.dumps(digests, sort_keys=True).encode())
    for file in sorted(artifacts.rglob("*.json")):
        if not is_hidden(file) and file.is_file():
            found.update(file.read_bytes())
    for name in sorted(pinned):
        found.update(name.encode() + pinned[name].numpy().tobytes())
    return found.hexdigest()
