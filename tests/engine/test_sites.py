"""Which layers of a model experts may touch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters.coefficient import EMBEDDING, HEAD
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from tests.factories.tiny_engines import BASES, tiny_engine, write_base, write_library


class OwnProduct(nn.Module):
    """A layer within a layer."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class SeesImages(OwnProduct):
    """A text model beside others, as vLLM's multimodal models have it."""

    supports_multimodal = True

    def get_language_model(self) -> nn.Module:
        return self.get_submodule("language_model")


@pytest.mark.parametrize("name", ["llama", "llama, tied embeddings"])
def test_only_what_a_text_passes_and_vllm_calls_is_a_site(name: str, tmp_path: Path) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention
    from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear

    from tta_serve.engine.worker.sites import find_sites

    class FastLinear(ReplicatedLinear):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            return x @ self.weight.t(), None

    base = write_base(tmp_path / "base", BASES[name])
    with tiny_engine(base, write_library(tmp_path / "library", base)) as engine:
        config = engine.llm.llm_engine.vllm_config
        [model] = engine.llm.apply_model(lambda model: model)
        plain = find_sites(model, config.model_config)
        with set_current_vllm_config(config):
            linear = [ReplicatedLinear(8, 8) for _ in range(5)]
            convolution, fast = ColumnParallelLinear(4, 8), FastLinear(8, 8)
        convolution.weight.data = convolution.weight.data.unsqueeze(1)

        # Latent attention takes the weight of one layer for products of its own.
        latent = MLAAttention.__new__(MLAAttention)
        nn.Module.__init__(latent)
        latent.kv_b_proj = linear[0]
        block = OwnProduct(
            kv_b_proj=linear[0], mla=latent, conv1d=convolution, fast=fast, out=linear[1]
        )
        drafts = nn.ModuleList([nn.Identity(), nn.Identity(), OwnProduct(fc=linear[2])])
        text = OwnProduct(
            model=model.model,
            lm_head=model.lm_head,
            more=OwnProduct(layers=nn.ModuleList([block])),
            draft=OwnProduct(layers=drafts),
        )
        towers = nn.ModuleList([OwnProduct(fc1=linear[3])])
        whole = SeesImages(
            vision_tower=OwnProduct(layers=towers), language_model=text, projector=linear[4]
        )
        found = find_sites(whole, config.model_config)

    more = "language_model.more.layers.0.out"
    assert set(found) == {f"language_model.{site}" for site in plain} | {more}
    ends = {site: plain[site].place for site in plain if "layers" not in site}
    tied = BASES[name].tie_word_embeddings
    assert ends == ({} if tied else {"model.embed_tokens": EMBEDDING, "lm_head": HEAD})


def test_an_expert_that_names_a_module_twice_is_refused() -> None:
    """A multimodal base has names of its own and those of its text model."""
    from vllm.model_executor.models.utils import WeightsMapper

    from tta_serve.engine.worker.placed_expert import place_expert

    class Renamed(nn.Module):
        hf_to_vllm_mapper = WeightsMapper(
            orig_to_new_prefix={
                "model.language_model.": "language_model.model.",
                "model.": "language_model.model.",
            }
        )

    names = "model.language_model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"
    expert = Expert("twice", dict.fromkeys(names, LowRank(torch.ones(1, 4), torch.ones(4, 1))))
    with pytest.raises(ExpertError, match="'twice' changes a module of this base under two names"):
        place_expert(expert, Renamed(), {}, lambda _, factor: factor)
