"""From a config and a suite to results: a server with everything, then one with static merges."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from adapters.checkpoint import Checkpoint
from adapters.entries import ENTRIES, read_entries
from adapters.library import Library
from tta_serve.config import ServeConfig
from tta_serve.evaluation import arms as roster
from tta_serve.evaluation.arms import Arm
from tta_serve.evaluation.ask import Memo, Server
from tta_serve.evaluation.merges import MergedLibrary, build
from tta_serve.evaluation.plan import Plan, limits
from tta_serve.evaluation.results import Results
from tta_serve.evaluation.session import Session
from tta_serve.plan import source_of


@dataclass(frozen=True)
class Wanted:
    """arms: names or kinds, all if empty   methods: of static merges   fronts: whether the points of fronts are arms too"""

    arms: tuple[str, ...]
    methods: tuple[str, ...]
    fronts: bool


class Evaluation:
    """One run. Raises ConfigError or AdapterError before anything is started, StartError if a server does not start."""

    def __init__(self, config: ServeConfig, plan: Plan, wanted: Wanted, progress: Progress) -> None:
        self._config, self._plan, self._wanted, self._progress = roster.with_controls(config), plan, wanted, progress
        self._library = Library.open(config.library.path)
        plan.suite.check(self._library.names)
        self._entries = [*config.library.entries, *_entries(self._library.root, self._config, fronts=wanted.fronts)]
        self._merges = roster.merge_arms(self._config, wanted.methods)
        roster.check([*self._arms(self._entries), *self._merges], [*wanted.arms, *plan.live])
        self._results = Results(plan.suite, config.default_policy, plan.seed)
        self._memo = Memo()

    def run(self) -> Results:
        self._limits = limits(self._plan.suite, _tokens_of(self._config))
        with self._serving(self._config) as (url, key):
            asyncio.run(self._everything(url, key))
        methods = [arm.name.removeprefix("merge ") for arm in roster.chosen(self._merges, self._wanted.arms)]
        if methods:
            with tempfile.TemporaryDirectory(prefix="tta-eval-") as folder:
                self._merged(Path(folder) / "library", methods)
        return self._results

    def _arms(self, entries: Sequence[str]) -> list[Arm]:
        return roster.arms_of(self._config, self._library.names, entries)

    async def _everything(self, url: str, key: str) -> None:
        async with Server(url, key, roster.names_of(self._config)) as server:
            served = set(await server.pins())
            for name in (name for name in self._entries if name not in served):
                self._results.skipped[f"entry {name}"] = "it is of other experts than those served, so the server left it out"
            session = self._session(server, self._config)
            arms = roster.chosen(self._arms([name for name in self._entries if name in served]), self._wanted.arms)
            await session.judge(arms)
            await session.without(arms)

    def _merged(self, root: Path, methods: Sequence[str]) -> None:
        base, advance = Checkpoint.open(_base_folder(self._config)), self._step("merge all experts", len(methods))
        merged = build(self._library, root, base, methods, advance)
        self._results.kept |= {f"merge {method}": kept for method, kept in merged.kept.items()}
        self._results.skipped |= {f"merge {method}": reason for method, reason in merged.refused.items()}
        config = roster.merges_only(self._config, merged.root, merged.experts, merged.ranks)
        with self._serving(config) as (url, key):
            asyncio.run(self._ask_merges(url, key, config, merged))

    async def _ask_merges(self, url: str, key: str, config: ServeConfig, merged: MergedLibrary) -> None:
        async with Server(url, key, roster.names_of(config)) as server:
            await self._session(server, config).judge(roster.merge_arms(config, merged.kept))

    def _session(self, server: Server, config: ServeConfig) -> Session:
        return Session(server, config.default_policy, self._plan, self._limits, self._results, self._memo, self._step)

    @contextmanager
    def _serving(self, config: ServeConfig) -> Iterator[tuple[str, str]]:
        """The address and the admin key of a server on a free port of this machine."""
        from tta_serve.serving.launch import managed

        server = config.server.model_copy(update={"host": "127.0.0.1", "port": _free_port()})
        advance = self._step("start a server", 1)
        with managed(config.model_copy(update={"server": server})) as access:
            advance()
            yield access

    def _step(self, title: str, parts: int) -> Callable[[], None]:
        task = self._progress.add_task(title, total=parts)
        return lambda: self._progress.advance(task)


def _entries(library: Path, config: ServeConfig, *, fronts: bool) -> list[str]:
    """The entries that `tta router` made for a library, but those that a policy stands for; the points of fronts if wanted."""
    stood_for = {policy.options.get("entry") for policy in config.policies.values() if policy.type == "learned_static"}
    made = read_entries(library / ENTRIES)
    return [name for name, entry in made.items() if name not in stood_for and (fronts or "front" not in entry.source)]


def _tokens_of(config: ServeConfig) -> Callable[[str], int]:
    """How many tokens a text is to the base."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source_of(config.model.source)))
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def _base_folder(config: ServeConfig) -> Path:
    """Where the base's weights are; by now they are on this machine."""
    from huggingface_hub import snapshot_download

    source = source_of(config.model.source)
    return source if isinstance(source, Path) else Path(snapshot_download(source, local_files_only=True))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
