"""Features offline are what a plain hook in the whole model sees."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.checkpoint import Checkpoint
from router.policy import RouterError
from tests.tta_serve.test_offline import ids, llama
from tta_serve.early import EarlyFeatures, first_linear, layer_of, means, states, tokens, turn
from tta_serve.offline import MAX_TOKENS, Offline

TEXTS = ["w1 w2 w3 w4 w5", "w9 w8 w7", "w6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture
def templated(base: Path) -> Offline:
    """With a chat template around a user turn."""
    offline = Offline.load(Checkpoint.open(base))
    offline.tokenizer.chat_template = "w1 {{ messages[0].content }}{% if add_generation_prompt %} w2{% endif %}"
    return offline


@pytest.fixture(scope="module")
def offline(base: Path) -> Offline:
    return Offline.load(Checkpoint.open(base))


def seen(base: Path, module: str, text: str) -> torch.Tensor:
    """The input of a module in a whole pass. Returns [tokens, hidden]."""
    model, found = AutoModelForCausalLM.from_pretrained(base), []
    model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        model(ids(text))
    return found[0]


@pytest.mark.parametrize("layer", [0, 1])
def test_features_are_the_mean_of_what_the_first_linear_layer_reads(base: Path, offline: Offline, layer: int) -> None:
    found = EarlyFeatures(offline, layer)(TEXTS)
    wanted = [seen(base, f"model.layers.{layer}.self_attn.q_proj", text).mean(0) for text in TEXTS]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_several_layers_come_of_one_pass_that_ends_at_the_last_of_them(base: Path, offline: Offline) -> None:
    later = []
    hook = offline.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(lambda *_: later.append(1))
    both = states(offline, ids(TEXTS[0]), [0, 1])
    hook.remove()
    assert not later
    for layer, found in enumerate(both):
        torch.testing.assert_close(found, seen(base, f"model.layers.{layer}.self_attn.q_proj", TEXTS[0]))
    assert not offline.model.get_submodule("model.layers.0.self_attn.q_proj")._forward_pre_hooks


def test_of_a_long_text_the_end_counts(offline: Offline) -> None:
    words = [f"w{i % 60}" for i in range(MAX_TOKENS + 8)]
    torch.testing.assert_close(tokens(offline, " ".join(words)), ids(" ".join(words[8:])))


def test_the_chat_template_goes_around_a_user_turn(templated: Offline) -> None:
    assert tokens(templated, "w7 w8", chat=True).tolist() == [[1, 7, 8, 2]]
    assert tokens(templated, "w7 w8").tolist() == [[7, 8]]


@pytest.mark.parametrize("layer", [0, 1])
def test_of_a_chat_the_turns_tokens_count_after_what_stands_before_them(base: Path, templated: Offline, layer: int) -> None:
    module = f"model.layers.{layer}.self_attn.q_proj"
    wanted = [seen(base, module, f"w1 {text} w2")[1:-1].mean(0) for text in TEXTS]
    torch.testing.assert_close(EarlyFeatures(templated, layer)(TEXTS, chat=True), torch.stack(wanted))
    torch.testing.assert_close(means(templated, TEXTS[0], [0, layer], chat=True)[-1], wanted[0])


def test_every_text_is_read_in_each_form_there_is(offline: Offline, templated: Offline) -> None:
    features = EarlyFeatures(templated, 1)
    torch.testing.assert_close(features.both(TEXTS), torch.stack([features(TEXTS), features(TEXTS, chat=True)], 1))
    bare = EarlyFeatures(offline, 1)
    torch.testing.assert_close(bare.both(TEXTS), bare(TEXTS)[:, None])


def test_of_a_long_turn_the_beginning_counts_and_one_that_is_not_found_is_all_of_it(templated: Offline) -> None:
    words = [f"w{3 + i % 50}" for i in range(MAX_TOKENS + 8)]
    found, start = turn(templated, " ".join(words))
    assert start == 1
    torch.testing.assert_close(found, ids(" ".join(["w1", *words[:MAX_TOKENS]])))
    templated.tokenizer.chat_template = "w1 w2"
    assert (turn(templated, "w7 w8")[0].tolist(), turn(templated, "w7 w8")[1]) == ([[1, 2]], 0)


def test_a_layer_that_is_not_there_is_refused(offline: Offline) -> None:
    with pytest.raises(RouterError, match="no decoder layer 2; it has 0 to 1"):
        first_linear(offline.model, 2)
    assert [layer_of(name) for name in ("model.layers.11.mlp.up_proj", "layers.3", "lm_head")] == [11, 3, None]
