"""`tta eval`: what is asked of a server, on a server that answers by hand."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tta_serve.evaluation.arms import EvaluatedArm, MixRequest, RequestFactory
from tta_serve.evaluation.match_rules import MatchRule
from tta_serve.evaluation.plan import Plan, limit_tokens
from tta_serve.evaluation.questions import Question, Suite
from tta_serve.evaluation.results import PolicyDecision, Results
from tta_serve.evaluation.server_client import AnswerMemo, ServerClient, run_all
from tta_serve.evaluation.session import Session
from tta_serve.metrics import sum_samples

NAMES = RequestFactory("m", 4)
ARMS = [
    EvaluatedArm("base", "base", NAMES.base),
    EvaluatedArm("oracle", "oracle"),
    EvaluatedArm("expert sql", "expert", NAMES.mix({"sql": 1.0})),
    EvaluatedArm("near", "policy"),
    EvaluatedArm("late", "policy"),
    EvaluatedArm("even", "static"),
]
ALL = dict.fromkeys(("sql", "math", "a", "b", "c"), 0.2)
SUITE = Suite(
    (
        *(
            Question("mixed", f"{task} {n}", f"{task}!", task)
            for task in ("sql", "math")
            for n in range(6)
        ),
        *(Question("everyday", f"hello {n}") for n in range(3)),
        *(Question("removed", f"gone {n}", "sql!", "sql") for n in range(2)),
    )
)


class ByHand(ServerClient):
    """Answers with the name of the expert that it was asked for.

    The policy `near` looks at the prompt, and `late` is late unless it is asked alone.
    """

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "key", NAMES)
        self.asked: Counter[tuple[str, MixRequest]] = Counter()
        self.bounds: Counter[tuple[int, tuple[str, ...]]] = Counter()
        self.here = {"sql", "math"}
        self.log: list[str] = []
        self.explaining = 0

    async def answer(self, prompt: str, asked: MixRequest, most: int, **more: Any) -> Any:
        salted = "cache_salt" in more.get("extra_body", {})
        if asked == MixRequest("m"):
            experts = self._near(prompt)
        else:
            mixes = [{}] if "policy" in asked.merge else asked.list_segments()
            experts = {name: c for mix in mixes for name, c in mix.items()}
        text = "".join(f"{name}!" for name in experts)
        if salted:
            text = "odd" if prompt == "sql 3" else text
        else:
            self.asked[prompt, asked] += 1
            self.bounds[most, tuple(more.get("stop", ()))] += 1
        choice = SimpleNamespace(message=SimpleNamespace(content=text))
        return SimpleNamespace(
            choices=[choice],
            merge={"experts": experts, "segments": None, "fallback": None, "router_ms": 1.5},
        )

    async def explain(self, prompt: str, policies: Sequence[str]) -> dict[str, PolicyDecision]:
        self.explaining += 1
        await asyncio.sleep(0)
        alone = policies == ["late"] and self.explaining == 1
        mixes = {"near": self._near(prompt), "late": {"math": 1.0} if alone else {}, "even": ALL}
        mixes["turns"] = {"sql": 1.0}
        then = {"turns": [{"math": 1.0}]}
        late = "base" if not alone else None
        self.explaining -= 1
        return {
            n: PolicyDecision(mixes[n], "", late if n == "late" else None, 3.0, 1, then.get(n, ()))
            for n in policies
        }

    async def sample(
        self, prompt: str, asked: MixRequest, most: int, seed: int
    ) -> tuple[list[int], int]:
        return [1, 2, 3, 4], 2

    async def read_logprobs(self, tokens: Sequence[int], asked: MixRequest) -> list[float]:
        return [-9.0, -1.0, -1.0] if asked == NAMES.base else [-5.0, -1.5, -2.5]

    async def count_prefix_cache(self) -> tuple[float, float]:
        return 10.0, 100.0

    async def unload(self, expert: str) -> str | None:
        self.here.remove(expert)
        self.log.append(f"-{expert}")
        return None

    async def load(self, expert: str) -> None:
        self.here.add(expert)
        self.log.append(f"+{expert}")

    def _near(self, prompt: str) -> Any:
        word = prompt.split(maxsplit=1)[0]
        if word in self.here:
            return {word: 1.0}
        return {"sql": 1.0} if word == "gone" and "sql" in self.here else {}


def run(
    server: ByHand, arms: Sequence[EvaluatedArm] = ARMS, suite: Suite = SUITE
) -> tuple[Results, list[str]]:
    results, steps = Results(suite, "near", 0), []

    def step(title: str, parts: int) -> Callable[[], None]:
        steps.append(f"{title}: {parts}")
        return lambda: None

    plan = Plan(suite, "near", False, 0, None, 2, ("near",))
    limits = limit_tokens(suite, lambda text: 4)
    session = Session(server, "near", plan, limits, results, AnswerMemo(), step)

    async def both() -> None:
        async with server:
            await session.judge(arms)
            await session.judge_removed(arms)

    asyncio.run(both())
    return results, steps


def test_every_mix_answers_every_question_once_whoever_asks() -> None:
    server = ByHand()
    results, _ = run(server)
    assert {count for (prompt, _), count in server.asked.items() if prompt != "Hello"} == {1}
    near, oracle = results.records["near"], results.records["oracle"]
    assert [near.answers[n].answer == oracle.answers[n].answer for n in range(12)].count(
        False
    ) == 1  # the odd one
    assert oracle.answers[0].score is not None
    assert oracle.answers[0].score.exact == 1
    assert (
        "sql 0",
        MixRequest.make("m", policy="even"),
    ) in server.asked  # more experts than a request may name
    assert not any(prompt.startswith("hello") for prompt, _ in server.asked)


def test_an_answer_in_segments_is_asked_for_as_a_whole() -> None:
    found = run(ByHand(), [EvaluatedArm("turns", "policy")])[0].records["turns"]
    assert {found.answers[n].answer for n in range(4)} == {"sql!math!"}
    assert {tuple(answer.then[0]) for answer in found.answers.values()} == {("math",)}


def test_traffic_is_what_scores_the_default_policy_and_is_compared() -> None:
    near = run(ByHand())[0].records["near"]
    assert near.live is not None
    assert (near.live.asked, near.live.differ, near.live.router_ms[0]) == (12, 1, 1.5)
    odd = near.answers[next(n for n, q in enumerate(SUITE.questions) if q.prompt == "sql 3")]
    assert odd.answer == "odd"
    assert odd.score is not None
    assert odd.score.exact == 0


def test_a_late_policy_is_asked_once_more_alone() -> None:
    late = run(ByHand())[0].records["late"]
    assert late.fallbacks == 0
    assert {frozenset(cell.experts) for cell in late.answers.values()} == {frozenset({"math"})}
    assert (late.times, late.passes) == ([3.0, 3.0], [1, 1])


def test_decisions_without_an_expert_are_made_while_it_is_away_and_it_comes_back() -> None:
    server = ByHand()
    results, steps = run(server)
    assert server.log == ["-sql", "+sql"]
    removed = SUITE.groups["removed"]
    assert all(results.records["near"].answers[n].experts == {} for n in removed)
    assert not results.records["even"].answers.keys() & set(removed)
    assert results.records["base"].answers.keys() >= set(removed)
    assert "decide without sql: 2" in steps


def test_an_expert_comes_back_when_deciding_fails() -> None:
    class Broken(ByHand):
        async def explain(self, prompt: str, policies: Sequence[str]) -> dict[str, PolicyDecision]:
            if "sql" not in self.here:
                raise RuntimeError("gone")
            return await super().explain(prompt, policies)

    server = Broken()
    with pytest.raises(RuntimeError, match="gone"):
        run(server)
    assert server.here == {"sql", "math"}


def test_a_refusal_to_unload_is_said() -> None:
    class Stubborn(ByHand):
        async def unload(self, expert: str) -> str | None:
            return "no"

    results, _ = run(Stubborn())
    assert results.skipped == {"without sql": "no"}


def test_the_divergence_is_of_the_answers_tokens_and_nothing_where_the_base_answers() -> None:
    results, _ = run(ByHand())
    everyday = SUITE.groups["everyday"]
    assert results.records["expert sql"].kl == {n: pytest.approx((0.5 + 1.5) / 2) for n in everyday}
    assert results.records["near"].kl == dict.fromkeys(everyday, 0.0)


def test_benchmarks_alone_are_decided_timed_and_answered_within_their_bounds() -> None:
    rules = {"a:strict": ("!",), "a:loose": ("!",), "b": ()}
    suite = Suite(
        tuple(
            Question(
                "benchmarks",
                f"sql {n}",
                "sql",
                kind="match",
                benchmark=name,
                rule=MatchRule(most_tokens=9, stops=stops),
            )
            for name, stops in rules.items()
            for n in range(3)
        )
    )
    server = ByHand()
    results, steps = run(server, suite=suite)
    records = results.records
    assert not records["oracle"].answers
    assert len(records["near"].answers) == len(records["expert sql"].answers) == 9
    scores = {name: records["near"].scores(own) for name, own in suite.groups.items()}
    assert {name: [s.exact for s in own.values()] for name, own in scores.items()} == {
        "benchmarks:a:strict": [1, 1, 1],
        "benchmarks:a:loose": [1, 1, 1],
        "benchmarks:b": [0, 0, 0],
    }
    assert records["near"].times == [3.0, 3.0]
    assert records["near"].live is None
    # Two filters of one task share their answers; another end is another answer.
    own = {key: count for key, count in server.asked.items() if key[0] != "Hello"}
    assert set(own.values()) == {2}
    assert set(server.bounds) == {(9, ("!",)), (9, ()), (1, ())}
    assert not any(step.startswith("traffic") for step in steps)


def test_jobs_run_so_many_at_once_in_their_order() -> None:
    running, most = 0, 0

    async def job(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - n % 5))
        running -= 1
        return n

    done: list[int] = []
    jobs = [lambda n=n: job(n) for n in range(20)]
    assert asyncio.run(run_all(jobs, lambda: done.append(1), 3)) == list(range(20))
    assert (most, len(done)) == (3, 20)


def test_counters_are_summed_over_replicas() -> None:
    text = '# HELP x\nx_total{replica="0"} 3.0\nx_total{replica="1"} 4.0\nx_total_created 9\n'
    assert sum_samples(text, "x_total") == 7
