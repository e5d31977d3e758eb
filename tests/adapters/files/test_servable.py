"""What slots can serve of a base, by the names of its weights and its configuration."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from adapters.files.checkpoint import Checkpoint
from adapters.files.servable import NAMES_ALONE, ServableWeights
from tests.factories.checkpoints import make_model, save_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MATRIX = (8, 8)


@pytest.mark.parametrize(
    "weight",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "layers.3.mlp.down_proj.weight",
        "model.language_model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.2.mlp.shared_expert.up_proj.weight",
        "model.layers.0.linear_attn.in_proj_qkvz.weight",
    ],
)
def test_linear_weights_of_the_decoder_are_served(weight: str) -> None:
    assert NAMES_ALONE.explain_refusal(weight, MATRIX) is None
    assert ServableWeights(4).explain_refusal(weight, MATRIX) is None


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("model.layers.0.mlp.experts.3.w1.weight", "routed experts"),
        ("model.layers.0.block_sparse_moe.experts.0.w2.weight", "routed experts"),
        ("model.layers.0.block_sparse_moe.gate.weight", "chooses among"),
        ("model.layers.0.mlp.router.weight", "chooses among"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "chooses among"),
        ("model.layers.4.self_attn.q_proj.weight", "further tokens"),
        ("mtp.layers.0.self_attn.q_proj.weight", "further tokens"),
        ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", "does not go through it"),
        ("model.visual.blocks.0.attn.qkv.weight", "does not go through it"),
        ("audio_tower.layers.0.fc1.weight", "does not go through it"),
        ("model.layers.0.input_layernorm.weight", "no linear layer"),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.N; slots serve layers.N"),
        ("gpt_neox.final.weight", "in no decoder layer"),
        (HEAD, "one weight"),
        (EMBEDDING, "one weight"),
    ],
)
def test_other_weights_are_refused_with_the_reason(weight: str, says: str) -> None:
    reason = ServableWeights(4, tied=True).explain_refusal(weight, MATRIX)
    assert says in str(reason)


def test_a_vector_and_a_stack_are_no_linear_layers() -> None:
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert NAMES_ALONE.explain_refusal(weight, (8,)) == "it is no linear layer"
    assert NAMES_ALONE.explain_refusal(weight, (2, 8, 8)) == "it is no linear layer"
    assert NAMES_ALONE.explain_refusal("model.layers.0.self_attn.q_proj.bias", (8,))


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_head_and_its_embedding_are_served(tmp_path: Path, *, tied: bool) -> None:
    checkpoint = save_model(make_model(tied=tied), tmp_path)
    servable = ServableWeights.of(checkpoint)
    assert servable == ServableWeights(2, tied)
    for weight in (HEAD, EMBEDDING):
        assert bool(servable.explain_refusal(weight, (24, 16))) == tied


def test_a_base_without_a_head_is_tied_whatever_its_configuration_says(tmp_path: Path) -> None:
    save_model(make_model(tied=True), tmp_path)
    LlamaConfig(tie_word_embeddings=False).save_pretrained(tmp_path)
    assert ServableWeights.of(Checkpoint.open(tmp_path)).tied


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("model.layers.0.input_layernorm.weight", None),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.layers.3.input_layernorm.bias", None),
        ("model.norm.weight", None),
        ("language_model.model.norm.weight", None),
        ("model.final_layernorm.bias", None),
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.layers.0.mlp.gate.bias", "chooses among"),
        ("model.layers.4.input_layernorm.weight", "further tokens"),
        ("mtp.norm.weight", "further tokens"),
        ("vision_tower.layers.0.norm.weight", "does not go through it"),
        ("model.layers.0.linear_attn.A_log", "neither a norm nor a bias"),
        ("model.embed_norm.weight", "in no decoder layer"),
        ("transformer.h.0.ln_norm.weight", "transformer.h.N; slots serve layers.N"),
    ],
)
def test_of_vectors_norms_and_biases_are_served(weight: str, says: str | None) -> None:
    reason = ServableWeights(4, tied=True).explain_unserved_delta(weight, (8,))
    assert says in str(reason) if says else reason is None


def test_of_matrices_no_more_is_served_as_one_bit_than_as_factors() -> None:
    for weight in ("model.layers.0.mlp.up_proj.weight", HEAD, "model.layers.0.conv.weight"):
        found = NAMES_ALONE.explain_unserved_delta(weight, MATRIX)
        assert found == NAMES_ALONE.explain_refusal(weight, MATRIX)
