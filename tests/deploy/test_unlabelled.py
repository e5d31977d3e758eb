"""What is measured of experts that no example prompts came with."""

import asyncio
from pathlib import Path

import pytest
import torch

from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from deploy.demo.strangers import NAMES, NONE
from deploy.demo.unlabelled import WeightsProbe, choose_nearest
from tests.factories.known_features import make_clusters
from tests.factories.tiny_library import make_library
from tta_serve.offline.base_model import PlainModel


def test_the_nearest_expert_is_chosen_and_the_base_for_the_rest() -> None:
    experts, everyday = make_clusters()
    known = {name: rows[:8] for name, rows in experts.items()}
    x = torch.cat([rows[8:] for rows in (*experts.values(), everyday)])
    choice = choose_nearest(known, everyday[:8], x)
    assert choice.tolist() == [k for k in range(4) for _ in range(12)]
    assert len(NAMES) == NONE


def test_what_experts_read_of_a_text_is_what_their_weights_say(tmp_path: Path) -> None:
    library = Library.open(make_library(tmp_path))
    experts = {name: library.expert(name) for name in library.digests}
    plain = PlainModel.load(Checkpoint.open(tmp_path / "base"))
    found = asyncio.run(WeightsProbe(plain, experts).activations("w3 w4 w5"))
    assert found.experts == tuple(experts)
    assert len(found.sites) == 4, "an attention and an MLP in each of two layers"

    # The input of the first attention, and all that an expert adds to it there.
    with torch.no_grad():
        states = plain.model.model.embed_tokens(torch.tensor([[3, 4, 5]]))
        x = plain.model.model.layers[0].input_layernorm(states)[0]
    for row, expert in enumerate(experts.values()):
        place = "model.layers.0.self_attn"
        read = [expert.factors[f"{place}.{name}"] for name in ("q_proj", "k_proj", "v_proj")]
        delta = torch.cat([factor.b @ factor.a for factor in read])
        assert found.norm[row, 0] == pytest.approx(float((delta @ x[-1]).norm()), rel=1e-4)
        lengths = found.spectr[row, 0] ** 2 + found.residual[row, 0] ** 2
        assert float(lengths) <= float(x.square().sum(1).mean()) * 1.001
        assert 0 < found.arrow[row, 0] <= found.spectr[row, 0] <= found.inputs[0]
