"""No request is computed with another's mix.

Whether it is cancelled, preempted, sampled several times, in chunks, waiting, or cached.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.coefficient import Coefficient, Pair
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import TOLERANCE, Answer, Engine, assert_same, distance
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tests.reference import Reference
from tta_serve.engine import wire

BLOCK = 32  # tokens; what fills none is not cached
CHUNK = 32
CHUNKED = {"max_num_batched_tokens": CHUNK, "enable_chunked_prefill": True}
FAR = 100 * TOLERANCE
UNEVEN = [
    Mix.of({"small": Pair(1.0, 0.0), "few": 0.5}),
    Mix.of({"small": Pair(0.0, 1.0), "few": 0.5}),
    Mix.of({"rslora": (0.0, 1.0)}),
    Mix.of({"rslora": (1.0, 0.0)}),
    Mix.of({"small": (0.5, -0.5), "rslora": Pair(0.0, 1.0), "few": 0.5}),
    Mix.of({"small": 1.0}),
    Mix(),
]


def some_mixes(count: int, names: Sequence[str]) -> list[Mix]:
    """Return distinct mixes that are far from each other.

    They are of every kind: of even and uneven coefficients, and the base.
    """
    rng = random.Random(count)

    def number() -> float:
        return rng.choice([-0.5, 0.0, 0.5, 1.0, 1.5])

    def coefficient() -> Coefficient:
        layers = (number(), number())
        kinds: list[Coefficient] = [number(), layers, Pair(number(), number())]
        kinds.append(Pair(layers, number()))
        return rng.choice(kinds)

    mixes = {Mix(): None}
    while len(mixes) < count:
        mixes[Mix.of({name: coefficient() for name in names})] = None
    return rng.sample(list(mixes), count)


@dataclass(frozen=True)
class World:
    """A tiny base, three experts, and what plain transformers makes of them."""

    base: Path
    library: Library
    reference: Reference

    def engine(self, slots: int, **settings: Any) -> AbstractContextManager[Engine]:
        fixed = {
            "max_loras": slots,
            "max_cpu_loras": slots,
            "max_num_seqs": slots,
            "block_size": BLOCK,
        }
        return tiny_engine(self.base, self.library, **fixed | settings)

    def mixes(self, count: int) -> list[Mix]:
        return some_mixes(count, self.library.names)

    def logprobs(self, mix: Mix, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        with self.reference.merged(self.library.experts, mix.as_dict()):
            return self.reference.logprobs(prompt, tokens)

    def assert_right(self, mix: Mix, answer: Answer) -> None:
        """A greedy answer is the one of the dense merge."""
        assert_same(answer, self.logprobs(mix, answer.prompt, answer.tokens))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("care")
    base = write_base(root / "base", BASES["llama"])
    return World(base, write_library(root / "library", base), Reference(base))


class Desk:
    """Takes requests one by one and steps the engine by hand, so that a test can act in between."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.llm = engine.llm.llm_engine
        self.scheduler = self.llm.engine_core.engine_core.scheduler
        self.asked: dict[str, Mix] = {}
        self.outputs: dict[str, Any] = {}
        self._inner: dict[str, str] = {}  # names that vLLM gives to requests for its own use

    def ask(self, prompt: list[int], mix: Mix, priority: int = 0, **params: Any) -> str:
        from tta_serve.engine.wire import make_mix_request

        name = f"request-{len(self._inner)}"
        self.asked[name] = mix
        self._add(name, prompt, make_mix_request(mix, self.engine.digests), priority, params)
        return name

    def probe(self, prompt: list[int]) -> str:
        from tta_serve.engine.wire import make_probe_request, with_turn

        probe = with_turn(make_probe_request("features"), (0, len(prompt)))
        self._add(probe.lora_name, prompt, probe, 0, {"max_tokens": 1})
        return str(probe.lora_name)

    def _add(
        self, name: str, prompt: list[int], lora: Any, priority: int, params: dict[str, Any]
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = {
            "temperature": 0,
            "max_tokens": 8,
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        }
        sampling = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **greedy | params)
        self._inner[name] = self.llm.add_request(
            name, {"prompt_token_ids": prompt}, sampling, lora_request=lora, priority=priority
        )

    def cancel(self, name: str) -> list[int]:
        """Returns its prompt."""
        prompt = self._request(name).prompt_token_ids
        self.llm.abort_request([name])
        del self.asked[name]
        return list(prompt)

    def _request(self, name: str) -> Any:
        """The scheduler's own record of a request; None when it is finished."""
        return self.scheduler.requests.get(self._inner[name])

    def stage(self, name: str) -> str:
        request = self._request(name)
        if request is None:
            return "finished"
        if request.status.name == "PREEMPTED":
            return "preempted"
        if request.num_computed_tokens == 0:
            return "waiting"
        return "decoding" if request.num_output_tokens else "prefilling"

    def steps(self) -> Iterator[None]:
        """Step until nothing is left to do, and yield before each."""
        while self.llm.has_unfinished_requests():
            yield
            self.outputs |= {output.request_id: output for output in self.llm.step()}

    def finish(self) -> list[tuple[Mix, list[Answer]]]:
        """All answers to each request that was not cancelled."""
        for _ in self.steps():
            pass
        return [(mix, answers(self.outputs[name])) for name, mix in self.asked.items()]

    def has_slot(self, name: str) -> bool:
        return self._request(name).lora_request.lora_int_id in self.llm.list_loras()

    def slots(self) -> list[int]:
        """Slots in use, and slots."""
        return list(self.engine.llm.collective_rpc("tta_slots")[0])


def answers(output: Any) -> list[Answer]:
    def logprobs(of: Any) -> list[float]:
        return [lp[t].logprob for lp, t in zip(of.logprobs, of.token_ids, strict=True)]

    return [
        Answer(list(output.prompt_token_ids), list(of.token_ids), logprobs(of))
        for of in output.outputs
    ]


def alone(engine: Engine, prompt: list[int], mix: Mix, **params: Any) -> list[Answer]:
    """What the request is answered with nothing beside it and nothing cached."""
    engine.llm.reset_prefix_cache()
    desk = Desk(engine)
    desk.ask(prompt, mix, **params)
    return desk.finish()[0][1]


def test_a_wrong_mix_would_be_seen(world: World) -> None:
    """No two of the mixes come near each other, at the tolerance that the other tests allow."""
    prompt, tokens = prompts([30, 8])
    for mixes in (UNEVEN, world.mixes(10), world.mixes(40)):
        made = [world.logprobs(mix, prompt, tokens) for mix in mixes]
        assert min(float((a - b).abs().max()) for a, b in combinations(made, 2)) > FAR


def test_cancelled_requests_leave_nothing_to_those_that_get_their_slots(world: World) -> None:
    """Each cancelled request has a twin, and its prompt is asked for again with another mix.

    Both may meet its blocks in the cache, which are right for one of them and wrong for the other.
    """
    texts, mixes = prompts([70] * 12), world.mixes(18)
    with world.engine(4, **CHUNKED) as engine:
        desk = Desk(engine)
        names = [desk.ask(*request) for request in zip(texts, mixes[:12], strict=True)]
        doomed = dict(zip(names[::2], ["decoding", "prefilling", "waiting"] * 2, strict=True))
        for request in zip(texts[::2], mixes[:12:2], strict=True):
            desk.ask(*request)
        cancel_each(desk, doomed, iter(mixes[12:]))
        assert not doomed
        finished = desk.finish()
        assert desk.slots() == [4, 4]
    assert len(finished) == 6 + 6 + 6
    for mix, [answer] in finished:
        world.assert_right(mix, answer)


def cancel_each(desk: Desk, doomed: dict[str, str], instead: Iterator[Mix]) -> None:
    """Cancel each at its stage, one between two steps, and ask for its prompt with another mix."""
    for _ in desk.steps():
        for name in [name for name, stage in doomed.items() if desk.stage(name) == stage][:1]:
            del doomed[name]
            desk.ask(desk.cancel(name), next(instead))


@pytest.mark.parametrize("caching", [False, True], ids=["recomputed", "from the cache"])
def test_preempted_requests_go_on_with_their_own_mixes(world: World, caching: bool) -> None:
    with short_of_blocks(world, 6, enable_prefix_caching=caching) as engine:
        before = preemptions(engine)
        desk = Desk(engine)
        for request in zip(prompts([40, 35, 50, 33, 45, 38]), world.mixes(6), strict=True):
            desk.ask(*request, max_tokens=70)
        finished = desk.finish()
        assert preemptions(engine) - before >= 3
    for mix, [answer] in finished:
        world.assert_right(mix, answer)


def test_a_preempted_request_that_lost_its_slot_gets_its_own_mix_again(world: World) -> None:
    """Urgent requests overtake the preempted one and take its slot.

    Without them it would find its row as it left it.
    """
    mixes = world.mixes(10)
    with short_of_blocks(world, 3, scheduling_policy="priority") as engine:
        desk = Desk(engine)
        slow = {
            desk.ask(*request, priority=1, max_tokens=120)
            for request in zip(prompts([40, 50, 60]), mixes[:3], strict=True)
        }
        urgent = iter(zip(prompts([20] * 7), mixes[3:], strict=True))
        lost = set()
        for _ in desk.steps():
            preempted = {name for name in slow if desk.stage(name) == "preempted"}
            lost |= {name for name in preempted if not desk.has_slot(name)}
            if preempted - lost and (request := next(urgent, None)):
                desk.ask(*request)
        assert lost
        finished = desk.finish()
    for mix, [answer] in finished:
        world.assert_right(mix, answer)


def short_of_blocks(world: World, slots: int, **settings: Any) -> AbstractContextManager[Engine]:
    """Eight blocks: two requests of full length never fit."""
    return world.engine(slots, num_gpu_blocks_override=9, disable_log_stats=False, **settings)


def preemptions(engine: Engine) -> int:
    return sum(int(m.value) for m in engine.llm.get_metrics() if m.name == "vllm:num_preemptions")


def test_several_answers_to_one_request_are_all_of_its_mix(world: World) -> None:
    """More answers than slots, so that those to one request share its slot.

    vLLM refuses n with temperature 0, so a greedy answer is one of top_k = 1.
    """
    greedy, warm = {"n": 2, "temperature": 1.0, "top_k": 1}, {"n": 3, "temperature": 0.8, "seed": 7}
    params: list[dict[str, Any]] = [warm, greedy, {}, warm | {"seed": 8}, greedy]
    requests = list(zip(prompts([20, 30, 25, 20, 40]), world.mixes(5), strict=True))
    with world.engine(3, max_num_seqs=9) as engine:
        desk = Desk(engine)
        for request, param in zip(requests, params, strict=True):
            desk.ask(*request, **param)
        finished = desk.finish()
        lonely = [
            alone(engine, *request, **param)
            for request, param in zip(requests, params, strict=True)
        ]
    for (mix, several), param, wanted in zip(finished, params, lonely, strict=True):
        assert [a.tokens for a in several] == [a.tokens for a in wanted]
        assert len(several) == param.get("n", 1)
        assert len({tuple(a.tokens) for a in several}) == (3 if "seed" in param else 1)
        for answer in several:
            assert distance(answer, world.logprobs(mix, answer.prompt, answer.tokens)) < TOLERANCE


@pytest.mark.parametrize("settings", [{}, CHUNKED], ids=["whole", "in chunks"])
def test_long_prompts_answers_and_probes_are_those_of_the_dense_merge(
    world: World, settings: dict[str, Any]
) -> None:
    """Probes are asked for between requests of the same prompts with mixes.

    In chunks, a step holds parts of several.
    """
    texts = prompts([150, 70, 220, 200, 130, 97, 33])
    with world.engine(8, **settings) as engine:
        desk = Desk(engine)
        probes = {}
        for prompt, mix in zip(texts, UNEVEN, strict=True):
            desk.ask(prompt, mix, prompt_logprobs=0)
            probes[desk.probe(prompt)] = prompt
        finished = desk.finish()
        reports = {probe: wire.take_features(desk.outputs[probe]) for probe in probes}
    for name, (mix, [answer]) in zip(desk.asked, finished, strict=True):
        world.assert_right(mix, answer)
        read = prompt_as_answer(desk.outputs[name])
        assert distance(read, world.logprobs(mix, read.prompt, read.tokens)) < TOLERANCE
    for probe, report in reports.items():
        assert report is not None
        wanted = mean_input(world, probes[probe])
        torch.testing.assert_close(torch.tensor(report.features), wanted, rtol=1e-4, atol=1e-5)


def prompt_as_answer(output: Any) -> Answer:
    """A prompt as if all but its first token were the answer to that one."""
    first, *rest = output.prompt_token_ids
    return Answer(
        [first],
        rest,
        [lp[t].logprob for lp, t in zip(output.prompt_logprobs[1:], rest, strict=True)],
    )


@torch.no_grad()
def mean_input(world: World, prompt: list[int]) -> torch.Tensor:
    """Of layer 1 of the base, over the prompt."""
    model = world.reference.model
    states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[1]
    inputs: torch.Tensor = model.model.layers[1].input_layernorm(states)
    return inputs[0].mean(0)


@pytest.mark.parametrize(
    ("slots", "at_once"), [(4, 4), (3, 8)], ids=["as many as run", "fewer than run"]
)
def test_more_mixes_than_slots_each_get_their_turn(world: World, slots: int, at_once: int) -> None:
    mixes = world.mixes(40)
    with world.engine(slots, max_num_seqs=at_once) as engine:
        for mix, answer in zip(mixes, engine.go_on(prompts(range(3, 43)), mixes, 8), strict=True):
            world.assert_right(mix, answer)
        assert Desk(engine).slots() == [slots, slots]


def test_turns_of_mixes_and_the_base_on_one_prompt_never_read_each_others_cache(
    world: World,
) -> None:
    """A mix that comes again finds its keys and values in the cache, but no longer its row.

    For there is one slot.
    """
    [prompt] = prompts([100])
    turns = [*UNEVEN, *UNEVEN[::-1], *UNEVEN]
    with world.engine(1, enable_prefix_caching=False) as engine:
        uncached = {mix: alone(engine, prompt, mix)[0] for mix in UNEVEN}
    with world.engine(1) as engine:
        desk = Desk(engine)
        names = [ask_and_finish(desk, prompt, mix) for mix in turns]
    cached = [desk.outputs[name].num_cached_tokens for name in names]
    assert cached == [0] * len(UNEVEN) + [prompt_blocks(prompt)] * 2 * len(UNEVEN)
    for name, mix in zip(names, turns, strict=True):
        [answer] = answers(desk.outputs[name])
        assert answer.tokens == uncached[mix].tokens
        assert answer.logprobs == pytest.approx(uncached[mix].logprobs, abs=TOLERANCE)
        world.assert_right(mix, answer)


def ask_and_finish(desk: Desk, prompt: list[int], mix: Mix) -> str:
    name = desk.ask(prompt, mix)
    desk.finish()
    return name


def prompt_blocks(prompt: list[int]) -> int:
    """Tokens of a prompt in full blocks: those that the cache can hold."""
    return len(prompt) // BLOCK * BLOCK
