"""One running server: what is asked of it, in which order."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tta_serve.evaluation.arms import EvaluatedArm, MixRequest
from tta_serve.evaluation.divergence import measure_divergences
from tta_serve.evaluation.plan import Plan
from tta_serve.evaluation.questions import EVERYDAY, Question
from tta_serve.evaluation.results import ArmAnswer, ArmRecord, LiveTraffic, PolicyDecision, Results
from tta_serve.evaluation.scoring import Score, score
from tta_serve.evaluation.server_client import (
    AnswerKey,
    AnswerMemo,
    ServerClient,
    Step,
    run_all,
)

_DECIDE_AT_ONCE = 4  # a comparison takes up to four rows of a batch, and a batch has sixteen


@dataclass
class Session:
    """One server that arms are asked of, and where their answers go."""

    server: ServerClient
    default: str
    """The policy that answers those who name none."""
    plan: Plan
    limits: Sequence[int]
    """The most tokens of an answer, by question."""
    results: Results
    memo: AnswerMemo
    step: Step

    async def judge(self, arms: Sequence[EvaluatedArm]) -> None:
        """Ask these arms everything but the slice without the right expert."""
        self.results.records |= {arm.name: ArmRecord(arm) for arm in arms}
        deciding = [arm for arm in arms if arm.decides]
        await self._warm(arms)

        # What policies decide: in traffic, timed alone, then on all other questions.
        for name in self.plan.live:
            for arm in (arm for arm in arms if arm.name == name and self.plan.shuffle_traffic()):
                await self._answer_traffic(arm)
        await self._time_decisions(deciding)
        await self._decide({arm.name: self.plan.list_numbers(arm) for arm in deciding}, "decide")
        for arm in (arm for arm in arms if not arm.decides):
            self._pin(arm)

        # What those mixes answer.
        await self._answer_questions(arms)
        self._compare_traffic(arms)

        # How far they move the base.
        everyday = self.plan.suite.groups.get(EVERYDAY, ())
        asked = {
            arm.name: {n: self._request(arm, n) for n in everyday if n in self._answers(arm)}
            for arm in arms
        }
        found = await measure_divergences(self.server, self.plan, asked, self.memo, self.step)
        for name, divergences in found.items():
            self.results.records[name].kl = divergences

    async def judge_removed(self, arms: Sequence[EvaluatedArm]) -> None:
        """Ask policies the slice without the right expert.

        It is unloaded for as long as they decide.
        """
        choosing = [arm for arm in arms if arm.kind in ("policy", "control")]
        for expert, numbers in self.plan.group_removed().items():
            refusal = await self.server.unload(expert)
            if refusal:
                self.results.skipped[f"without {expert}"] = refusal
                continue
            try:
                await self._decide(
                    {a.name: self.plan.thin(a, numbers) for a in choosing},
                    f"decide without {expert}",
                )
            finally:
                await self.server.load(expert)
        await self._answer_questions(choosing)

    def _question(self, number: int) -> Question:
        return self.plan.suite.questions[number]

    def _answers(self, arm: EvaluatedArm) -> dict[int, ArmAnswer]:
        return self.results.records[arm.name].answers

    async def _warm(self, arms: Sequence[EvaluatedArm]) -> None:
        """Use everything once: the first use takes longer than the next."""
        await self._explain("Hello", [arm.name for arm in arms if arm.decides])
        for arm in arms:
            if arm.pinned is not None:
                await self.server.answer("Hello", arm.pinned, 1)

    async def _explain(self, prompt: str, policies: Sequence[str]) -> dict[str, PolicyDecision]:
        return await self.server.explain(prompt, policies) if policies else {}

    async def _ask(self, number: int, asked: MixRequest, **more: Any) -> Any:
        question = self._question(number)
        if question.stops:
            more["stop"] = list(question.stops)
        return await self.server.answer(question.prompt, asked, self.limits[number], **more)

    def _score(self, number: int, text: str) -> Score | None:
        question = self._question(number)
        if question.want is None:
            return None
        return score(question.kind, question.want, question.parts, text, question.rule)

    async def _answer_traffic(self, arm: EvaluatedArm) -> None:
        """Let an arm answer mixed traffic, on a prefix cache of its own.

        What comes of it are the arm's answers.
        """
        numbers = self.plan.shuffle_traffic()
        record = self.results.records[arm.name]
        asked = arm.pinned or self._ask_policy(arm)
        salt = {"cache_salt": secrets.token_hex(8)}
        jobs = [partial(self._ask, number, asked, extra_body=salt) for number in numbers]

        hits, queries = await self.server.count_prefix_cache()
        answers = await run_all(jobs, self.step(f"traffic: {arm.name}", len(jobs)))
        hits_after, queries_after = await self.server.count_prefix_cache()

        for number, answer in zip(numbers, answers, strict=True):
            text = answer.choices[0].message.content or ""
            then = [segment["experts"] for segment in answer.merge["segments"] or ()][1:]
            record.answers[number] = ArmAnswer(
                answer.merge["experts"], text, self._score(number, text), then
            )
            record.fallbacks += answer.merge["fallback"] is not None
        times = tuple(answer.merge["router_ms"] for answer in answers)
        record.live = LiveTraffic(
            len(answers), 0, hits_after - hits, queries_after - queries, times
        )

    def _ask_policy(self, arm: EvaluatedArm) -> MixRequest:
        """Return the request of traffic that a policy answers; the default one is not named."""
        served = self.server.requests.served
        if arm.name == self.default:
            return MixRequest(served)
        return MixRequest.make(served, policy=arm.name)

    def _compare_traffic(self, arms: Sequence[EvaluatedArm]) -> None:
        """Count the answers in traffic that are not those to the same prompt and mix alone."""
        for arm in arms:
            record = self.results.records[arm.name]
            if record.live is not None:
                same = (
                    self.memo.answers[self._key(arm, n)] == record.answers[n].answer
                    for n in self.plan.shuffle_traffic()
                )
                record.live = replace(record.live, differ=sum(not s for s in same))

    async def _time_decisions(self, arms: Sequence[EvaluatedArm]) -> None:
        """Time decisions one at a time, each on a prompt that no policy has seen.

        A tag of its own is added to it.
        """
        numbers = self.plan.list_timed()
        advance = self.step("time decisions", len(numbers) * len(arms))
        for arm in arms:
            record = self.results.records[arm.name]
            for number in numbers:
                tag = hashlib.sha256(f"{arm.name}|{number}".encode()).hexdigest()[:6]
                ms, passes = await self._time_one(arm, f"{self._question(number).prompt} ({tag})")
                record.times.append(ms)
                record.passes.append(passes)
                advance()

    async def _time_one(self, arm: EvaluatedArm, prompt: str) -> tuple[float, int]:
        """Return how long a decision takes, ms, and the rows that the engine runs for it alone."""
        if arm.inline:
            asked = MixRequest.make(self.server.requests.served, policy=arm.name)
            answer = await self.server.answer(prompt, asked, 1)
            return answer.merge["router_ms"], 0
        decided = (await self._explain(prompt, [arm.name]))[arm.name]
        return decided.router_ms, decided.passes

    async def _decide(self, wanted: Mapping[str, Iterable[int]], title: str) -> None:
        """Ask what policies do with questions that they did not meet in traffic.

        Args:
            wanted: The numbers of the questions by policy.
            title: Of the step in the progress.
        """
        policies = defaultdict[int, list[str]](list)
        for name, numbers in wanted.items():
            for number in set(numbers) - self.results.records[name].answers.keys():
                policies[number].append(name)
        jobs = [
            partial(self._explain, self._question(number).prompt, names)
            for number, names in policies.items()
        ]
        decisions = await run_all(jobs, self.step(title, len(jobs)), _DECIDE_AT_ONCE)

        # Those that were late are asked once more: alone they may be in time.
        for number, found in zip(policies, decisions, strict=True):
            late = [name for name, decided in found.items() if decided.fallback is not None]
            again = await self._explain(self._question(number).prompt, late)
            for name, decided in (found | again).items():
                self.results.records[name].answers[number] = ArmAnswer(
                    decided.experts, then=decided.then
                )
                self.results.records[name].fallbacks += decided.fallback is not None

    def _pin(self, arm: EvaluatedArm) -> None:
        """Record what an arm that does not decide mixes for each of its questions."""
        for number in self.plan.list_numbers(arm):
            experts, *then = self._request(arm, number).list_segments()
            self._answers(arm).setdefault(number, ArmAnswer(experts, then=then))

    def _request(self, arm: EvaluatedArm, number: int) -> MixRequest:
        """Return the request for the answer of an arm's mix to a question."""
        if arm.kind == "oracle":
            return self.server.requests.ask_oracle(self._question(number).tasks)
        if arm.pinned is not None:
            return arm.pinned
        cell = self._answers(arm)[number]
        requests = self.server.requests
        if arm.gated and cell.experts:
            return MixRequest.make(requests.served, policy=arm.name)
        if cell.then:
            return requests.answer_in_segments([cell.experts, *cell.then])
        return requests.mix(cell.experts, arm.name)

    def _key(self, arm: EvaluatedArm, number: int) -> AnswerKey:
        question = self._question(number)
        return question.prompt, self._request(arm, number), self.limits[number], question.stops

    async def _answer_questions(self, arms: Sequence[EvaluatedArm]) -> None:
        """Ask for the answer of every mix to every question that is judged, each once."""
        judged = [
            (arm, number)
            for arm in arms
            for number in self._answers(arm)
            if self._question(number).want is not None
        ]
        new = {key: n for arm, n in judged if (key := self._key(arm, n)) not in self.memo.answers}
        jobs = [partial(self._ask, number, asked) for (_, asked, _, _), number in new.items()]
        for key, answer in zip(
            new, await run_all(jobs, self.step("answers", len(jobs))), strict=True
        ):
            self.memo.answers[key] = answer.choices[0].message.content or ""
        for arm, number in judged:
            cell, text = self._answers(arm)[number], self.memo.answers[self._key(arm, number)]
            if cell.answer is None:
                self._answers(arm)[number] = ArmAnswer(
                    cell.experts, text, self._score(number, text), cell.then
                )
