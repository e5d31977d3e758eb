"""Where experts go in a model of vLLM: linear layers, the token embedding and the output head."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models import supports_multimodal

from adapters.coefficient import EMBEDDING, HEAD, Place, kind_of, layer_of
from adapters.errors import ExpertError

_TIED = (
    "is one weight with the base's {other}: the base ties its token embeddings to its output head,"
    " and a change of one alone would be another base; train the adapter without it"
)
_NO_SITE = "is not a linear layer of this base that can be mixed"
_CALLED = frozenset(
    layer.forward for layer in (ReplicatedLinear, ColumnParallelLinear, RowParallelLinear)
)
_LOOKED_UP = frozenset(layer.forward for layer in (VocabParallelEmbedding, ParallelLMHead))


@dataclass(frozen=True)
class MixtureSite:
    """One layer to which experts may add: y += sum_k c_k b_k a_k x.

    The token embedding is one too, as the linear layer that it is of one-hot inputs, whose weight
    is the transpose of the embedding's.
    """

    name: str
    """vLLM's name of it."""
    layer: LinearBase | VocabParallelEmbedding
    """The layer itself."""
    place: Place
    """The attention or MLP that it is part of, `EMBEDDING` or `HEAD`."""
    weights: tuple[str, ...]
    """The base's own names of the weights stacked in it."""
    inputs: int
    """Its full input size."""
    sizes: tuple[int, ...]
    """Their full output sizes."""
    local_sizes: tuple[int, ...]
    """Their output sizes on this rank."""

    @property
    def local_inputs(self) -> int:
        """Its input size on this rank."""
        layer = self.layer
        in_parts = isinstance(layer, RowParallelLinear)
        return int(layer.input_size_per_partition) if in_parts else self.inputs

    @property
    def whole(self) -> Callable[[Tensor], Tensor] | None:
        """Makes a product with this rank's part of the input the one with all of it.

        It is None if the rank has all of the input.
        """
        in_parts = isinstance(self.layer, RowParallelLinear) and self.layer.tp_size > 1
        return (lambda h: tensor_model_parallel_all_reduce(h.clone())) if in_parts else None


def find_sites(model: nn.Module, config: ModelConfig) -> dict[str, MixtureSite]:
    """Return all layers of the text model to which experts may add, by vLLM's name.

    Args:
        model: vLLM's model.
        config: vLLM's configuration of it.

    What is no linear layer when it runs is left out: what sits beside routed experts, since vLLM
    may multiply by a router's weight without asking the router, convolutions, what latent attention
    absorbs into other products, and layers with a product of their own. So are towers for other
    than text, and layers that only draft. A token embedding and an output head that are one weight
    are none.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules())
    routed = {
        name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, MoERunner)
    }
    absorbed = {m.kv_b_proj for m in modules.values() if isinstance(m, MLAAttention)}
    of_text = set(find_text_model(model).modules())
    layers = config.get_total_num_hidden_layers()
    found = {
        name: _make_linear_site(name, module, packed)
        for name, module in modules.items()
        if isinstance(module, LinearBase)
        and module in of_text
        and _is_of_layers(name, layers)
        and name.rpartition(".")[0] not in routed
        and module not in absorbed
        and _multiplies(module)
    }
    ends = _find_ends(model)
    if not _are_tied(ends):
        found |= {
            name: _make_end(name, module)
            for name, module in ends.items()
            if type(module).forward in _LOOKED_UP
        }
    return found


def explain_no_site(model: nn.Module, weight: str) -> str:
    """Return why experts cannot touch a weight that is at no site, by vLLM's name."""
    ends = _find_ends(model)
    if _are_tied(ends):
        of_head = weight.rpartition(".")[2] == "lm_head" or _is_head(ends.get(weight))
        if of_head or weight in ends:
            return _TIED.format(other="token embeddings" if of_head else "output head")
    return _NO_SITE


def find_first_sites(sites: Mapping[str, MixtureSite]) -> dict[Place, MixtureSite]:
    """Return the first linear layer of each attention and MLP.

    There every rank has the whole of the input.
    """
    first: dict[Place, MixtureSite] = {}
    for site in sites.values():
        if isinstance(site.layer, LinearBase) and not isinstance(site.layer, RowParallelLinear):
            first.setdefault(site.place, site)
    return first


def find_tapped_site(sites: Mapping[str, MixtureSite], layer: int) -> str:
    """Return the first linear layer of a decoder layer, whose input is what routing reads."""
    for name, site in sites.items():
        if site.place.layer == layer:
            return name
    raise ExpertError(f"the base has no layer {layer} to read features from")


def full_sizes(layer: LinearBase) -> tuple[int, ...]:
    """Return the output size of each weight stacked in a layer, over all tensor-parallel ranks."""
    if isinstance(layer, QKVParallelLinear):
        kv = layer.total_num_kv_heads
        return layer.total_num_heads * layer.head_size, kv * layer.head_size, kv * layer.v_head_size
    return tuple(getattr(layer, "output_sizes", None) or [layer.output_size])


def find_local_rows(layer: LinearBase, part: int, size: int) -> tuple[int, int]:
    """Return how many output rows of slice `part` live here, and which block of it these are."""
    if isinstance(layer, QKVParallelLinear) and part > 0:
        head = layer.head_size if part == 1 else layer.v_head_size
        return layer.num_kv_heads * head, layer.tp_rank // layer.num_kv_head_replicas
    if isinstance(layer, ColumnParallelLinear):
        return size // layer.tp_size, layer.tp_rank
    return size, 0


def find_text_model(model: Any) -> nn.Module:
    """Return the part of a model that every text passes."""
    found: nn.Module = model.get_language_model() if supports_multimodal(model) else model
    return found


def _is_of_layers(name: str, layers: int) -> bool:
    index = layer_of(name)
    return index is not None and index < layers


def _multiplies(layer: LinearBase) -> bool:
    """Whether a layer's output is what its quant method makes of its input."""
    weight = getattr(layer, "weight", None)
    is_convolution = weight is not None and weight.ndim == 3 and weight.shape[1] == 1
    return type(layer).forward in _CALLED and not is_convolution


def _make_linear_site(name: str, layer: LinearBase, packed: Mapping[str, list[str]]) -> MixtureSite:
    parent, _, leaf = name.rpartition(".")
    parts = packed.get(leaf, [leaf])
    sizes = full_sizes(layer)
    local = _local_sizes(layer, sizes)
    if len(parts) != len(sizes):
        # The base itself stores the fused weight, so experts speak of it as one.
        parts = [leaf]
        sizes = (sum(sizes),)
        local = (sum(local),)
    index = layer_of(name)
    assert index is not None
    where = Place(index, kind_of(name))
    weights = tuple(f"{parent}.{part}" for part in parts)
    return MixtureSite(name, layer, where, weights, layer.input_size, sizes, local)


def _local_sizes(layer: LinearBase, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, RowParallelLinear) or layer.tp_size == 1:
        return sizes
    return tuple(find_local_rows(layer, i, size)[0] for i, size in enumerate(sizes))


# The token embedding and the output head


def _find_ends(model: nn.Module) -> dict[str, VocabParallelEmbedding]:
    """Return what lies before and after the decoder layers of the text model, by name."""
    of_text = set(find_text_model(model).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding)
        and layer_of(name) is None
        and (module in of_text or "." not in name)
    }


def _is_head(layer: nn.Module | None) -> bool:
    return isinstance(layer, ParallelLMHead)


def _are_tied(ends: Mapping[str, nn.Module]) -> bool:
    """Whether the token embedding and the output head are one weight."""
    heads = [layer for layer in ends.values() if _is_head(layer)]
    others = [layer for layer in ends.values() if not _is_head(layer)]
    if not heads:
        return bool(others)
    of_heads = {id(weight) for weight in _weights(heads)}
    return any(id(weight) in of_heads for weight in _weights(others))


def _weights(layers: list[nn.Module]) -> Iterator[nn.Parameter]:
    for layer in layers:
        yield from layer.parameters(recurse=False)


def _make_end(name: str, layer: VocabParallelEmbedding) -> MixtureSite:
    words, width = layer.org_vocab_size, layer.embedding_dim
    if isinstance(layer, ParallelLMHead):
        local = layer.num_embeddings_per_partition
        return MixtureSite(name, layer, HEAD, (name,), width, (words,), (local,))
    # Each rank adds to the whole of an embedding, after what all have of it was put together.
    return MixtureSite(name, layer, EMBEDDING, (name,), words, (width,), (width,))
