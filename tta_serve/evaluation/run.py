"""From a config and a suite to results: a server with everything, then one with static merges."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from adapters.files.checkpoint import Checkpoint
from adapters.library.entries import ENTRIES, scan_entries
from adapters.library.library import Library
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation import arms as roster
from tta_serve.evaluation.arms import EvaluatedArm
from tta_serve.evaluation.local_server import serve_locally
from tta_serve.evaluation.merge_variants import MergeVariant, TunedMerge, list_variants
from tta_serve.evaluation.merges import MergedLibrary, build_merged_library
from tta_serve.evaluation.plan import Plan, limit_tokens
from tta_serve.evaluation.results import Results
from tta_serve.evaluation.server_client import AnswerMemo, ServerClient, Step
from tta_serve.evaluation.session import Session
from tta_serve.serving.experts.startup import source_of

MergeTuner = Callable[
    [ServerClient, ServeConfig, Sequence[MergeVariant], Step], Awaitable[Sequence[TunedMerge]]
]
"""Finds the best merge of each method and its scale, by the server that serves them all."""


@dataclass(frozen=True)
class EvaluationScope:
    """Which arms an evaluation has."""

    arms: tuple[str, ...]
    """Their names or kinds; all if empty."""
    methods: tuple[str, ...]
    """The methods of static merges."""
    fronts: bool
    """Whether the points of fronts and the entries of recombined sets are arms too."""
    tune: MergeTuner | None = None
    """What finds densities and scales of static merges; None to serve each as its method has it."""


class Evaluation:
    """One run, from a config and a plan to results.

    Args:
        config: Of the server that is judged.
        plan: Which questions are asked.
        wanted: Which arms are asked them.
        progress: Where the steps are shown.

    Raises:
        AdapterError: The library cannot be used.
        ConfigError: The suite or an arm does not fit the config.
    """

    def __init__(
        self, config: ServeConfig, plan: Plan, wanted: EvaluationScope, progress: Progress
    ) -> None:
        self._config = roster.add_controls(config)
        self._plan = plan
        self._wanted = wanted
        self._progress = progress
        self._library = Library.open(config.library.path).usable()
        plan.suite.check(self._library.names)
        self._entries = [
            *config.library.entries,
            *_list_entries(self._library.root, self._config, fronts=wanted.fronts),
        ]
        untuned = map(TunedMerge, list_variants(wanted.methods, tuned=False))
        self._merges = roster.list_merge_arms(self._config, untuned)
        roster.check_arms([*self._arms(self._entries), *self._merges], [*wanted.arms, *plan.live])
        self._results = Results(plan.suite, config.default_policy, plan.seed)
        self._memo = AnswerMemo()

    def run(self) -> Results:
        """Ask all arms.

        Raises:
            StartError: A server does not start.
        """
        self._limits = limit_tokens(self._plan.suite, _make_counter(self._config))
        config = roster.reduce_to_asked(self._config, self._wanted.arms)
        with self._serving(config) as (url, key):
            asyncio.run(self._ask_everything(url, key))
        methods = [
            arm.name.removeprefix("merge ")
            for arm in roster.choose_arms(self._merges, self._wanted.arms)
        ]
        if methods:
            with tempfile.TemporaryDirectory(prefix="tta-eval-") as folder:
                self._judge_merges(Path(folder) / "library", methods)
        return self._results

    def _arms(self, entries: Sequence[str]) -> list[EvaluatedArm]:
        return roster.list_arms(self._config, self._library.names, entries)

    async def _ask_everything(self, url: str, key: str) -> None:
        async with ServerClient(url, key, roster.make_request_factory(self._config)) as server:
            served = set(await server.list_pins())
            for name in (name for name in self._entries if name not in served):
                self._results.skipped[f"entry {name}"] = (
                    "it is of other experts than those served, so the server left it out"
                )
            session = self._session(server, self._config)
            arms = roster.choose_arms(
                self._arms([name for name in self._entries if name in served]), self._wanted.arms
            )
            await session.judge(arms)
            await session.judge_removed(arms)

    def _judge_merges(self, root: Path, methods: Sequence[str]) -> None:
        """Merge all experts by each method into a library at `root`, and ask a server of it."""
        base = Checkpoint.open(_find_base_folder(self._config))
        densities = self._wanted.tune is not None and not self._plan.quick
        variants = list_variants(methods, tuned=densities)
        advance = self._step("merge all experts", len(variants))
        merged = build_merged_library(self._library, root, base, variants, advance)
        self._results.skipped |= {
            variant.title: reason for variant, reason in merged.refused.items()
        }
        config = roster.reduce_to_merges(self._config, merged.root, merged.experts, merged.ranks)
        with self._serving(config) as (url, key):
            asyncio.run(self._ask_merges(url, key, config, merged))

    async def _ask_merges(
        self, url: str, key: str, config: ServeConfig, merged: MergedLibrary
    ) -> None:
        async with ServerClient(url, key, roster.make_request_factory(config)) as server:
            made = list(merged.kept)
            if self._wanted.tune is None:
                merges: Sequence[TunedMerge] = [TunedMerge(variant) for variant in made]
            else:
                merges = await self._wanted.tune(server, config, made, self._step)
                self._results.note_tuned(merges)
            self._results.kept |= {merge.arm: merged.kept[merge.variant] for merge in merges}
            await self._session(server, config).judge(roster.list_merge_arms(config, merges))

    def _session(self, server: ServerClient, config: ServeConfig) -> Session:
        return Session(
            server,
            config.default_policy,
            self._plan,
            self._limits,
            self._results,
            self._memo,
            self._step,
        )

    @contextmanager
    def _serving(self, config: ServeConfig) -> Iterator[tuple[str, str]]:
        """Serve a config meanwhile, and yield the server's address and admin key."""
        advance = self._step("start a server", 1)
        with serve_locally(config) as access:
            advance()
            yield access

    def _step(self, title: str, parts: int) -> Callable[[], None]:
        return begin_step(self._progress, title, parts)


def begin_step(progress: Progress, title: str, parts: int) -> Callable[[], None]:
    """Show a step that begins; return what tells that one of its parts is done."""
    if parts and not progress.console.is_terminal:
        # There a bar is drawn once, when all is over.
        progress.console.log(f"{title}: {parts}")
    task = progress.add_task(title, total=parts)
    return lambda: progress.advance(task)


def _list_entries(library: Path, config: ServeConfig, *, fronts: bool) -> list[str]:
    """List the entries that `tta router` made for a library.

    Those that a policy stands for are left out, and those of fronts and sets unless wanted.
    """
    stood_for = {
        policy.options.get("entry")
        for policy in config.policies.values()
        if policy.type == "learned_static"
    }
    made, _ = scan_entries(library / ENTRIES)
    return [
        name
        for name, entry in made.items()
        if name not in stood_for and (fronts or not entry.source.keys() & {"front", "set"})
    ]


def _make_counter(config: ServeConfig) -> Callable[[str], int]:
    """Return what counts the tokens that a text has for the base."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source_of(config.model.source)))
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def _find_base_folder(config: ServeConfig) -> Path:
    """Return where the base's weights are; by now they are on this machine."""
    from huggingface_hub import snapshot_download

    source = source_of(config.model.source)
    if isinstance(source, Path):
        return source
    return Path(snapshot_download(source, local_files_only=True))
