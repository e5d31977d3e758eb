"""Training on a tiny random model: the rate, the loss, and going on after an interruption."""

from __future__ import annotations

import io
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.library.library import Library
from deploy.demo import model, train
from deploy.demo.tasks import TASKS


class Letters:
    """A tokeniser with a token for every character."""

    pad_token_id = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) % 128 for letter in text])

    def apply_chat_template(self, turns: list[dict[str, str]], **_: bool) -> str:
        return f"system: be good; user: {turns[0]['content']}; answer: "


def load_tiny(layers: int, *, tied: bool = False) -> tuple[Any, Any]:
    """Return a random base of so many layers, and its tokeniser."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=128,
        num_hidden_layers=layers,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config), Letters()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(
        1
    )  # threads that wait for each other take most of the time of so small a model
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(train, "load_base", partial(load_tiny, 8))
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_an_answer_is_right_by_what_it_comes_to_and_blanks_around_it_are_forgiven() -> None:
    math, triage = TASKS["math"], TASKS["triage"]
    assert math.is_right(" 12 * 3 = 36\nAnswer: 36\n", "3 * 12 = 36\nAnswer: 36")
    assert not math.is_right("3 * 12 = 36\nAnswer: 35", "3 * 12 = 36\nAnswer: 36")
    assert not math.is_right("answer: 36", "Answer: 36")
    assert triage.is_right("category=bug; priority=low\n", "category=bug; priority=low")
    assert not triage.is_right("So:\ncategory=bug; priority=low", "category=bug; priority=low")


def test_rate_warms_up_then_falls() -> None:
    settings = train.TrainingSettings("orders", steps=100)
    rates = [settings.rate(step) for step in range(100)]
    warm = train.WARMUP
    assert rates.index(max(rates)) in (warm - 1, warm)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert 0 < rates[-1] < settings.peak / 10


def test_doing_the_common_start_once_changes_no_loss() -> None:
    run = train.start_run(train.TrainingSettings("triage", steps=4))
    rows = next(train.draw_batches(run))
    plain = []
    for prompt, answer in rows:
        logits = run.model(input_ids=torch.tensor([prompt + answer])).logits[
            0, len(prompt) - 1 : -1
        ]
        plain.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        )
    mean = sum(plain) / sum(len(answer) for _, answer in rows)
    torch.testing.assert_close(train.compute_loss(run, rows), mean)


def test_an_interrupted_training_ends_with_the_same_weights() -> None:
    settings = train.TrainingSettings("orders", steps=11, batch=2)
    whole = train.start_run(settings)
    train.optimise(whole, quiet())
    part = train.start_run(settings)
    for rows in islice(train.draw_batches(part), 5):
        train.train_step(part, rows)
    part.save()
    other = train.start_run(settings)
    assert other.resume()
    assert other.step == 5
    train.optimise(other, quiet())
    ours, theirs = (get_peft_model_state_dict(run.model) for run in (whole, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_of_other_settings_is_not_continued() -> None:
    train.start_run(train.TrainingSettings("orders", steps=4)).save()
    assert not train.start_run(train.TrainingSettings("orders", steps=5)).resume()
    assert not train.start_run(train.TrainingSettings("orders", steps=4, seed=1)).resume()


def test_an_expert_is_trained_further_from_where_it_is(tmp_path: Path) -> None:
    first = train.start_run(train.TrainingSettings("orders", steps=2, batch=2))
    train.optimise(first, quiet())
    train.export(first, tmp_path / "orders")
    settings = train.TrainingSettings("orders", steps=2, seed=1, batch=2, further=True)
    more = train.start_run(settings, tmp_path)
    there = load_file(tmp_path / "orders" / "adapter_model.safetensors")
    begun = more.get_state()
    assert there.keys() == begun.keys()
    assert all(torch.equal(there[key].float(), begun[key]) for key in there)
    assert settings.rate(train.WARMUP) == settings.peak / 2
    train.optimise(more, quiet())
    examples = (tmp_path / "orders" / "examples.txt").read_text(encoding="utf-8")
    train.export(more, tmp_path / "orders")
    ended = load_file(tmp_path / "orders" / "adapter_model.safetensors")
    assert any(not torch.equal(there[key], ended[key]) for key in there)
    assert (tmp_path / "orders" / "examples.txt").read_text(encoding="utf-8") == examples


def test_only_upper_layers_are_trained() -> None:
    run = train.start_run(train.TrainingSettings("orders", steps=4))
    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert all("layers.6." in name or "layers.7." in name for name in trained)


INVOCATION = [ord(letter) for letter in "user: "]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny template opens its turns otherwise than the demo's."""
    monkeypatch.setattr(model, "_TURNS", {"user_turn": "user: ", "answer": "answer: "})


@pytest.mark.usefixtures("turns")
def test_an_adapter_that_acts_later_learns_nothing_of_the_tokens_before() -> None:
    settings = train.TrainingSettings("triage", steps=4, batch=2, acts_from="user_turn")
    run = train.start_run(settings)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    rows = next(train.draw_batches(run))
    losses = []
    for prompt, answer in rows:
        start = len(prompt) - "".join(map(chr, prompt))[::-1].find(" :resu") - len(INVOCATION)
        assert prompt[start : start + len(INVOCATION)] == INVOCATION
        logits = run_from(run, prompt + answer, start)[len(prompt) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        )
    mean = sum(losses) / sum(len(answer) for _, answer in rows)
    torch.testing.assert_close(train.compute_loss(run, rows), mean)


def run_from(run: train.Run, tokens: list[int], start: int) -> torch.Tensor:
    """Return logits of tokens that run as the base up to one of them, and with the adapter then."""

    def cut(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        acts = torch.arange(output.shape[1]) >= start
        return output * acts.unsqueeze(1)

    config = run.model.peft_config["default"]
    invocation, config.alora_invocation_tokens = config.alora_invocation_tokens, None
    plain = train.start_run(train.TrainingSettings("triage", steps=4, batch=2))
    set_peft_model_state_dict(plain.model, get_peft_model_state_dict(run.model))
    config.alora_invocation_tokens = invocation
    for name, module in plain.model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(cut)
    found: torch.Tensor = plain.model(input_ids=torch.tensor([tokens])).logits[0]
    return found


@pytest.mark.usefixtures("turns")
def test_what_acts_later_says_so_and_is_kept_beside_the_demos_own(tmp_path: Path) -> None:
    settings = train.TrainingSettings("triage", steps=2, batch=2, acts_from="answer")
    run = train.start_run(settings)
    train.optimise(run, quiet())
    assert run.checkpoint.name == "triage-answer.pt"
    train.export(run, tmp_path / "out" / "triage")
    library = Library.open(tmp_path / "out")
    assert library.invocation("triage") == tuple(ord(letter) for letter in "answer: ")
    assert len(library.examples("triage")) == train.ROUTER_EXAMPLES
