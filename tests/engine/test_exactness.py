"""Mixture slots in real vLLM, against three references.

Plain transformers with dense merged weights, PEFT, and vLLM without us.
"""

import random
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.errors import ExpertError
from adapters.library.library import Library
from adapters.mix import Mix
from tests.factories.engines import (
    SLOTS,
    TAP_LAYER,
    TOLERANCE,
    Answer,
    Engine,
    assert_same,
    random_mix,
)
from tests.factories.experts import make_narrow_expert
from tests.factories.inline_world import Asked, ask
from tests.factories.tiny_engines import BASES, tiny_engine, write_base
from tests.reference import Reference, answer_logprobs

DEMO = ("dates", "math", "orders", "redact", "sql", "triage")
MADE = ("small", "rslora", "pattern")
PROMPTS = [
    "Tell me a story about a lighthouse.",
    "Table staff(name, salary, dept). Which name in staff have salary above 70?",
    "Ana has 12 lamps and buys 30 more. How many lamps now?",
    "I was charged twice this month. This is urgent!",
    "Today is Monday, 4 March 2024. What is the date in 3 days?",
]


@pytest.mark.parametrize(
    "names", [DEMO, MADE, DEMO + MADE], ids=["demo", "other-ranks-and-scales", "all"]
)
def test_random_mixes_equal_the_dense_merge(
    engine: Engine, library: Library, reference: Reference, names: tuple[str, ...]
) -> None:
    rng = random.Random(len(names))
    mixes = [random_mix(rng, names, len(names)) for _ in PROMPTS]
    for answer, mix in zip(engine.ask(PROMPTS, mixes), mixes, strict=True):
        with reference.merged(library.experts, mix.as_dict()):
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))


@pytest.mark.parametrize("name", [*DEMO, *MADE])
def test_one_hot_is_the_adapter_in_peft(
    engine: Engine, library: Library, base: Path, name: str
) -> None:
    answers = engine.ask(PROMPTS, [Mix.of({name: 1.0})] * len(PROMPTS))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(library.root / name)).eval()
    for answer in answers:
        assert_same(answer, answer_logprobs(model, answer.prompt, answer.tokens))


def test_without_a_mix_it_is_vllm_as_it_comes(engine: Engine, base: Path) -> None:
    ours = one_by_one(engine)
    beside_mixes = engine.ask(
        PROMPTS, [Mix(), Mix.of({"sql": 1.0}), Mix(), Mix.of({"small": 0.5}), Mix()]
    )
    stock = Engine(base, None)
    try:
        theirs = one_by_one(stock)
    finally:
        stock.close()
    assert ours == theirs, "all-base steps skip the bank, so not even rounding differs"
    for i in (0, 2, 4):
        assert beside_mixes[i].tokens == theirs[i].tokens
        assert beside_mixes[i].logprobs == pytest.approx(theirs[i].logprobs, abs=1e-4)


def one_by_one(engine: Engine) -> list[Answer]:
    """Return answers of the base, each computed in the same steps.

    Other requests, and what is cached, decide how vLLM cuts its work into steps: so there are none.
    """
    engine.llm.reset_prefix_cache()
    return [answer for prompt in PROMPTS for answer in engine.ask([prompt])]


def test_the_order_of_experts_does_not_matter(engine: Engine) -> None:
    one = Mix.of({"sql": 0.5, "math": 0.3, "small": 0.2})
    two = Mix.of(dict(reversed(one.coefficients)))
    assert one.key(engine.digests) == two.key(engine.digests)
    assert engine.ask(PROMPTS[:1], [one]) == engine.ask(PROMPTS[:1], [two])


def test_a_batch_of_different_mixes_gives_each_what_it_gets_alone(engine: Engine) -> None:
    rng = random.Random(7)
    mixes = [random_mix(rng, DEMO + MADE, 4) for _ in range(SLOTS)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(SLOTS)]
    together = engine.ask(prompts, mixes)
    engine.llm.reset_prefix_cache()
    for prompt, mix, answer in zip(prompts, mixes, together, strict=True):
        assert engine.ask([prompt], [mix])[0].tokens == answer.tokens


def test_the_prefix_cache_changes_nothing_and_never_crosses_mixes(engine: Engine) -> None:
    """Long shared prompts, asked twice, so that the second round is answered from the cache."""
    prompt = " ".join(PROMPTS)
    mixes = [Mix(), Mix.of({"sql": 1.0}), Mix.of({"math": 1.0}), Mix.of({"sql": 0.5, "small": 1.0})]
    first = [engine.ask([prompt], [m])[0] for m in mixes]
    second = [engine.ask([prompt], [m])[0] for m in reversed(mixes)][::-1]
    uncached = []
    for mix in mixes:
        engine.llm.reset_prefix_cache()
        uncached += engine.ask([prompt], [mix])
    assert len({tuple(a.tokens) for a in uncached}) > 1
    for cached in (first, second):
        for a, b in zip(cached, uncached, strict=True):
            assert a.tokens == b.tokens
            assert a.logprobs == pytest.approx(b.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.long)])
def test_many_distinct_mixes_in_a_row_stay_right_and_leave_nothing_behind(
    engine: Engine, library: Library, reference: Reference, count: int
) -> None:
    rng = random.Random(11)
    drawn = dict.fromkeys(random_mix(rng, DEMO + MADE, 4) for _ in range(2 * count))
    mixes = list(drawn)[:count]
    prompts = [[504 + i % 7, 3575, 282, 4649 + i // 7, 314] for i in range(len(mixes))]
    half = len(mixes) // 2
    answers = engine.go_on(prompts[:half], mixes[:half], 1)
    before = _memory()
    answers += engine.go_on(prompts[half:], mixes[half:], 1)
    grown = _memory() - before
    assert grown < 32 * 1024**2, f"{grown / 1024**2:.1f} MiB more after {half} further mixes"
    assert engine.llm.collective_rpc("tta_slots") == [[SLOTS, SLOTS]]

    order = rng.sample(range(len(mixes)), len(mixes))
    engine.llm.reset_prefix_cache()
    again = engine.go_on([prompts[i] for i in order], [mixes[i] for i in order], 1)
    for i, answer in zip(order, again, strict=True):
        assert answer.logprobs == pytest.approx(answers[i].logprobs, abs=TOLERANCE)
    for i in order[:12]:
        with reference.merged(library.experts, mixes[i].as_dict()):
            assert_same(answers[i], reference.logprobs(answers[i].prompt, answers[i].tokens))


def _memory() -> int:
    """Resident bytes of the engine's processes."""
    children = psutil.Process().children(recursive=True)
    return sum(c.memory_info().rss for c in children if c.is_running())


def test_a_probe_reads_the_mean_input_of_its_layer(engine: Engine, reference: Reference) -> None:
    from tta_serve.engine.wire import ProbeFeatures, make_mix_request, make_probe_request

    tokenizer = engine.llm.get_tokenizer()
    texts = [tokenizer.encode(p, add_special_tokens=False) for p in PROMPTS]
    turns = [(i, len(tokens) - i) for i, tokens in enumerate(texts)]
    busy = Asked(texts[0], make_mix_request(Mix.of({"sql": 1.0}), engine.digests))
    probes = [
        Asked(tokens, make_probe_request("features"), turn)
        for tokens, turn in zip(texts, turns, strict=True)
    ]
    *found, other = ask(engine, [*probes, busy], tokens=1)
    assert other.report is None
    for (tokens, _, _), (start, end), got in zip(probes, turns, found, strict=True):
        with torch.no_grad():
            states = reference.model(
                torch.tensor([tokens]), output_hidden_states=True
            ).hidden_states[TAP_LAYER]
            wanted = (
                reference.model.model.layers[TAP_LAYER]
                .input_layernorm(states)[0, start:end]
                .mean(0)
            )
        assert isinstance(got.report, ProbeFeatures)
        torch.testing.assert_close(torch.tensor(got.report.features), wanted, rtol=1e-3, atol=1e-4)


def test_an_expert_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    tiny = write_base(tmp_path / "base", BASES["llama"])
    make_narrow_expert(tmp_path / "stranger" / "stranger", "model.layers.0.mlp.nope", (4, 6))
    make_narrow_expert(tmp_path / "wide" / "wide", "model.layers.0.mlp.up_proj", (256, 7))
    for name, says in (
        ("stranger", r"'stranger': model.layers.0.mlp.nope is not a linear layer of this base"),
        (
            "wide",
            (
                r"'wide': model.layers.0.mlp.up_proj is for a weight of \(256, 7\), this base has"
                r" \(256, 128\)"
            ),
        ),
    ):
        with (
            pytest.raises(ExpertError, match=says),
            tiny_engine(tiny, Library.open(tmp_path / name)),
        ):
            pass
