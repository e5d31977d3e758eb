"""Features offline are what a plain hook in the whole model sees."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.coefficient import layer_of
from adapters.files.checkpoint import Checkpoint
from router.errors import RouterError
from tests.factories.tiny_library import make_base, read_ids
from tta_serve.offline.base_model import MAX_TOKENS, PlainModel
from tta_serve.offline.features import (
    EarlyFeatures,
    find_first_linear,
    read_means,
    read_states,
    tokenize,
    tokenize_turn,
)

TEXTS = ["w1 w2 w3 w4 w5", "w9 w8 w7", "w6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture
def templated(base: Path) -> PlainModel:
    """A base with a chat template around a user turn."""
    plain = PlainModel.load(Checkpoint.open(base))
    plain.tokenizer.chat_template = (
        "w1 {{ messages[0].content }}{% if add_generation_prompt %} w2{% endif %}"
    )
    return plain


@pytest.fixture(scope="module")
def plain(base: Path) -> PlainModel:
    return PlainModel.load(Checkpoint.open(base))


def watch_input(base: Path, module: str, text: str) -> torch.Tensor:
    """Return the input of a module in a whole pass, [tokens, hidden]."""
    model = AutoModelForCausalLM.from_pretrained(base)
    found: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0][0])
    )
    with torch.no_grad():
        model(read_ids(text))
    return found[0]


@pytest.mark.parametrize("layer", [0, 1])
def test_features_are_the_mean_of_what_the_first_linear_layer_reads(
    base: Path, plain: PlainModel, layer: int
) -> None:
    found = EarlyFeatures(plain, layer)(TEXTS)
    wanted = [
        watch_input(base, f"model.layers.{layer}.self_attn.q_proj", text).mean(0) for text in TEXTS
    ]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_several_layers_come_of_one_pass_that_ends_at_the_last_of_them(
    base: Path, plain: PlainModel
) -> None:
    later = []
    hook = plain.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(
        lambda *_: later.append(1)
    )
    both = read_states(plain, read_ids(TEXTS[0]), [0, 1])
    hook.remove()
    assert not later
    for layer, found in enumerate(both):
        torch.testing.assert_close(
            found, watch_input(base, f"model.layers.{layer}.self_attn.q_proj", TEXTS[0])
        )
    assert not plain.model.get_submodule("model.layers.0.self_attn.q_proj")._forward_pre_hooks


def test_of_a_long_text_the_end_counts(plain: PlainModel) -> None:
    words = [f"w{i % 60}" for i in range(MAX_TOKENS + 8)]
    torch.testing.assert_close(tokenize(plain, " ".join(words)), read_ids(" ".join(words[8:])))


def test_the_chat_template_goes_around_a_user_turn(templated: PlainModel) -> None:
    assert tokenize(templated, "w7 w8", chat=True).tolist() == [[1, 7, 8, 2]]
    assert tokenize(templated, "w7 w8").tolist() == [[7, 8]]


@pytest.mark.parametrize("layer", [0, 1])
def test_of_a_chat_the_turns_tokens_count_after_what_stands_before_them(
    base: Path, templated: PlainModel, layer: int
) -> None:
    module = f"model.layers.{layer}.self_attn.q_proj"
    wanted = [watch_input(base, module, f"w1 {text} w2")[1:-1].mean(0) for text in TEXTS]
    torch.testing.assert_close(
        EarlyFeatures(templated, layer)(TEXTS, chat=True), torch.stack(wanted)
    )
    torch.testing.assert_close(
        read_means(templated, TEXTS[0], [0, layer], chat=True)[-1], wanted[0]
    )


def test_every_text_is_read_in_each_form_there_is(plain: PlainModel, templated: PlainModel) -> None:
    features = EarlyFeatures(templated, 1)
    torch.testing.assert_close(
        features.read_all_forms(TEXTS),
        torch.stack([features(TEXTS), features(TEXTS, chat=True)], 1),
    )
    bare = EarlyFeatures(plain, 1)
    torch.testing.assert_close(bare.read_all_forms(TEXTS), bare(TEXTS)[:, None])


def test_of_a_long_turn_the_beginning_counts_and_one_that_is_not_found_is_all_of_it(
    templated: PlainModel,
) -> None:
    words = [f"w{3 + i % 50}" for i in range(MAX_TOKENS + 8)]
    found, start = tokenize_turn(templated, " ".join(words))
    assert start == 1
    torch.testing.assert_close(found, read_ids(" ".join(["w1", *words[:MAX_TOKENS]])))
    templated.tokenizer.chat_template = "w1 w2"
    assert (
        tokenize_turn(templated, "w7 w8")[0].tolist(),
        tokenize_turn(templated, "w7 w8")[1],
    ) == ([[1, 2]], 0)


def test_a_layer_that_is_not_there_is_refused(plain: PlainModel) -> None:
    with pytest.raises(RouterError, match="no decoder layer 2; it has 0 to 1"):
        find_first_linear(plain.model, 2)
    assert [layer_of(name) for name in ("model.layers.11.mlp.up_proj", "layers.3", "lm_head")] == [
        11,
        3,
        None,
    ]
