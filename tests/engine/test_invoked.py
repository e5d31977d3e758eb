"""Activated LoRA as PEFT trains, saves and runs it, alone and in mixes."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import assert_same
from tests.factories.inline_world import Asked, World, ask
from tests.factories.tiny_engines import BASES, prompts, write_base
from tests.reference import answer_logprobs, number_at
from tta_serve.engine import wire
from tta_serve.serving.routing.invoked_mix import InvokedMix

INVOCATIONS = {"judge": [7, 3, 9], "title": [5, 8]}
PROMPTS = {
    "once": lambda a, b: [*a, *INVOCATIONS["judge"], *b],
    "twice": lambda a, b: [*a, *INVOCATIONS["judge"], *b, *INVOCATIONS["judge"]],
    "at the start": lambda a, b: [*INVOCATIONS["judge"], *a, *b],
    "never": lambda a, b: [*a, *b],
    "beside another": lambda a, b: [*a, *INVOCATIONS["title"], *b, *INVOCATIONS["judge"], 2],
}


def save(base: Path, folder: Path, invocation: list[int] | None, seed: int) -> None:
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",
        alora_invocation_tokens=invocation,
        init_lora_weights=False,
    )
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("invoked")
    base = write_base(root / "base", BASES["llama"])
    for seed, (name, tokens) in enumerate([*INVOCATIONS.items(), ("plain", None)]):
        save(base, root / "library" / name, tokens, seed)
    return World.of(base, Library.open(root / "library"))


def asked(world: World, prompt: list[int], mix: Mix) -> Asked:
    own = {n: world.library.invocation(n) for n in mix.as_dict() if world.library.invocation(n)}
    invoked = InvokedMix(mix, own, lambda cut: wire.make_mix_request(cut, world.library.digests))
    *before, last = invoked.split(invoked.find_starts(prompt), 0)
    earlier = [
        wire.EarlierMix(part.start, adapter.lora_name, wire.read_order(adapter).mix or {})
        for part in before
        for adapter in [part.adapter or wire.make_base_request()]
    ]
    adapter = last.adapter or wire.make_base_request()
    return Asked(prompt, wire.acting_from(adapter, last.start, earlier))


def make_prompts() -> list[list[int]]:
    [one, two] = prompts((60, 45))
    return [make([max(t, 10) for t in one], [max(t, 10) for t in two]) for make in PROMPTS.values()]


def test_an_expert_answers_as_peft_has_it_wherever_it_is_invoked(world: World) -> None:
    base = AutoModelForCausalLM.from_pretrained(world.base)
    model = peft.PeftModel.from_pretrained(base, world.library.root / "judge").eval()
    with world.engine() as engine:
        for _ in range(2):  # the second time from the cache
            found = ask(engine, [asked(world, p, Mix.of({"judge": 1.0})) for p in make_prompts()])
            for one in found:
                assert_same(
                    one.answer, answer_logprobs(model, one.answer.prompt, one.answer.tokens)
                )


def test_each_expert_of_a_mix_acts_from_its_own_invocation_on(world: World) -> None:
    mix = Mix.of({"judge": 0.75, "title": -0.5, "plain": 1.0})
    used = mix.as_dict()
    experts = {name: world.library.experts[name] for name in used}
    with world.engine() as engine:
        got = ask(engine, [asked(world, p, mix) for p in make_prompts()])
        for one in got:
            prompt = one.answer.prompt
            starts = InvokedMix(mix, INVOCATIONS, lambda _: None).find_starts(prompt)

            def coefficients(
                name: str, module: str, x: torch.Tensor, starts: dict[str, int | None] = starts
            ) -> torch.Tensor:
                start = starts.get(name, 0)
                acts = torch.arange(len(x)) >= (len(x) if start is None else start)
                return acts * number_at(used[name], module)

            with world.reference.per_token(experts, coefficients):
                assert_same(one.answer, world.reference.logprobs(prompt, one.answer.tokens))
