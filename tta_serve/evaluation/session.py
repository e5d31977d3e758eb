"""One running server: what is asked of it, in which order."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tta_serve.evaluation.arms import Arm, Asked
from tta_serve.evaluation.ask import Memo, Server, Step, each
from tta_serve.evaluation.divergence import divergences
from tta_serve.evaluation.plan import Plan
from tta_serve.evaluation.questions import EVERYDAY, Question
from tta_serve.evaluation.results import Cell, Decided, Live, Record, Results
from tta_serve.evaluation.scoring import Score, score

_DECIDE_AT_ONCE = 4  # a comparison takes up to four rows of a batch, and a batch has sixteen


@dataclass
class Session:
    """One server. default: the policy that answers those who name none   limits: most tokens of an answer, by question

    step: begins a step of so many parts, and returns what tells that one is done
    """

    server: Server
    default: str
    plan: Plan
    limits: Sequence[int]
    results: Results
    memo: Memo
    step: Step

    async def judge(self, arms: Sequence[Arm]) -> None:
        """Ask these arms everything but the slice without the right expert."""
        self.results.records |= {arm.name: Record(arm) for arm in arms}
        deciding = [arm for arm in arms if arm.decides]
        await self._warm(arms)
        for name in self.plan.live:
            for arm in (arm for arm in arms if arm.name == name and self.plan.traffic()):
                await self._traffic(arm)
        await self._time(deciding)
        await self._decide({arm.name: self.plan.numbers(arm) for arm in deciding}, "decide")
        for arm in (arm for arm in arms if not arm.decides):
            self._pin(arm)
        await self._answer(arms)
        self._compare_traffic(arms)
        everyday = self.plan.suite.groups.get(EVERYDAY, ())
        asked = {arm.name: {n: self._asked(arm, n) for n in everyday if n in self._cells(arm)} for arm in arms}
        for name, found in (await divergences(self.server, self.plan, asked, self.memo, self.step)).items():
            self.results.records[name].kl = found

    async def without(self, arms: Sequence[Arm]) -> None:
        """Ask policies the slice without the right expert, which is unloaded for as long as they decide."""
        choosing = [arm for arm in arms if arm.kind in ("policy", "control")]
        for expert, numbers in self.plan.removed().items():
            refusal = await self.server.unload(expert)
            if refusal:
                self.results.skipped[f"without {expert}"] = refusal
                continue
            try:
                await self._decide({a.name: self.plan.thinned(a, numbers) for a in choosing}, f"decide without {expert}")
            finally:
                await self.server.load(expert)
        await self._answer(choosing)

    def _question(self, number: int) -> Question:
        return self.plan.suite.questions[number]

    def _cells(self, arm: Arm) -> dict[int, Cell]:
        return self.results.records[arm.name].cells

    async def _warm(self, arms: Sequence[Arm]) -> None:
        """The first use of anything takes longer than the next."""
        await self._explain("Hello", [arm.name for arm in arms if arm.decides])
        for arm in arms:
            if arm.pinned is not None:
                await self.server.answer("Hello", arm.pinned, 1)

    async def _explain(self, prompt: str, policies: Sequence[str]) -> dict[str, Decided]:
        return await self.server.explain(prompt, policies) if policies else {}

    async def _ask(self, number: int, asked: Asked, **more: Any) -> Any:
        return await self.server.answer(self._question(number).prompt, asked, self.limits[number], **more)

    def _score(self, number: int, text: str) -> Score | None:
        question = self._question(number)
        return None if question.want is None else score(question.kind, question.want, question.parts, text)

    async def _traffic(self, arm: Arm) -> None:
        """Mixed traffic, on a prefix cache of its own. What comes of it are the arm's answers."""
        numbers, record, salt = self.plan.traffic(), self.results.records[arm.name], secrets.token_hex(8)
        served = self.server.names.served
        asked = arm.pinned or (Asked(served) if arm.name == self.default else Asked.of(served, policy=arm.name))
        jobs = [partial(self._ask, number, asked, extra_body={"cache_salt": salt}) for number in numbers]
        hits, queries = await self.server.prefix_cache()
        answers = await each(jobs, self.step(f"traffic: {arm.name}", len(jobs)))
        hits_after, queries_after = await self.server.prefix_cache()
        for number, answer in zip(numbers, answers, strict=True):
            text = answer.choices[0].message.content or ""
            record.cells[number] = Cell(answer.merge["experts"], text, self._score(number, text))
            record.fallbacks += answer.merge["fallback"] is not None
        times = tuple(answer.merge["router_ms"] for answer in answers)
        record.live = Live(len(answers), 0, hits_after - hits, queries_after - queries, times)

    def _compare_traffic(self, arms: Sequence[Arm]) -> None:
        for arm in arms:
            record = self.results.records[arm.name]
            if record.live is not None:
                same = (self.memo.answers[self._key(arm, n)] == record.cells[n].answer for n in self.plan.traffic())
                record.live = replace(record.live, differ=sum(not s for s in same))

    async def _time(self, arms: Sequence[Arm]) -> None:
        """Decisions one at a time, each on a prompt that no policy has seen: a tag of its own is added to it."""
        numbers = self.plan.traffic()[: self.plan.timed]
        advance = self.step("time decisions", len(numbers) * len(arms))
        for arm in arms:
            record = self.results.records[arm.name]
            for number in numbers:
                tag = hashlib.sha256(f"{arm.name}|{number}".encode()).hexdigest()[:6]
                ms, passes = await self._timed(arm, f"{self._question(number).prompt} ({tag})")
                record.times.append(ms)
                record.passes.append(passes)
                advance()

    async def _timed(self, arm: Arm, prompt: str) -> tuple[float, int]:
        """How long a request waits for a decision, ms, and the rows that the engine runs for it alone."""
        if arm.inline:
            answer = await self.server.answer(prompt, Asked.of(self.server.names.served, policy=arm.name), 1)
            return answer.merge["router_ms"], 0
        decided = (await self._explain(prompt, [arm.name]))[arm.name]
        return decided.router_ms, decided.passes

    async def _decide(self, wanted: Mapping[str, Iterable[int]], title: str) -> None:
        """What policies do with questions that they did not meet in traffic. wanted: questions by policy"""
        names_of = defaultdict[int, list[str]](list)
        for name, numbers in wanted.items():
            for number in set(numbers) - self.results.records[name].cells.keys():
                names_of[number].append(name)
        jobs = [partial(self._explain, self._question(number).prompt, names) for number, names in names_of.items()]
        decisions = await each(jobs, self.step(title, len(jobs)), _DECIDE_AT_ONCE)
        for number, found in zip(names_of, decisions, strict=True):
            late = [name for name, decided in found.items() if decided.fallback is not None]
            again = await self._explain(self._question(number).prompt, late)  # alone they may be in time
            for name, decided in (found | again).items():
                self.results.records[name].cells[number] = Cell(decided.experts)
                self.results.records[name].fallbacks += decided.fallback is not None

    def _pin(self, arm: Arm) -> None:
        for number in self.plan.numbers(arm):
            self._cells(arm).setdefault(number, Cell(self._asked(arm, number).experts))

    def _asked(self, arm: Arm, number: int) -> Asked:
        """How the answer to a question by an arm's mix is asked for."""
        if arm.kind == "oracle":
            return self.server.names.oracle(self._question(number).tasks)
        if arm.pinned is not None:
            return arm.pinned
        experts, names = self._cells(arm)[number].experts, self.server.names
        if arm.gated and experts:
            return Asked.of(names.served, policy=arm.name)
        return names.mix(experts, arm.name)

    def _key(self, arm: Arm, number: int) -> tuple[str, Asked]:
        return self._question(number).prompt, self._asked(arm, number)

    async def _answer(self, arms: Sequence[Arm]) -> None:
        """The answer of every mix to every question that is judged, each once."""
        cells = [(arm, number) for arm in arms for number in self._cells(arm)]
        judged = [(arm, number) for arm, number in cells if self._question(number).want is not None]
        new = {key: n for arm, n in judged if (key := self._key(arm, n)) not in self.memo.answers}
        jobs = [partial(self._ask, number, asked) for (_, asked), number in new.items()]
        for key, answer in zip(new, await each(jobs, self.step("answers", len(jobs))), strict=True):
            self.memo.answers[key] = answer.choices[0].message.content or ""
        for arm, number in judged:
            cell, text = self._cells(arm)[number], self.memo.answers[self._key(arm, number)]
            if cell.answer is None:
                self._cells(arm)[number] = Cell(cell.experts, text, self._score(number, text))
