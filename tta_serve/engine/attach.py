"""Where experts go in a model of vLLM: its linear layers, and each tensor-parallel rank's share of an expert's factors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
)

from adapters.canonical import canonical_expert
from adapters.coefficient import Place, layer_of
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.layer_gates import Gates, LayerGate


@dataclass(frozen=True)
class Site:
    """One linear layer of the decoder.

    weights: the base's own names of the weights stacked in it   sizes: their full output sizes
    local_sizes: their output sizes on this rank
    """

    name: str
    layer: LinearBase
    place: Place
    weights: tuple[str, ...]
    sizes: tuple[int, ...]
    local_sizes: tuple[int, ...]

    @property
    def whole(self) -> Callable[[Tensor], Tensor] | None:
        """Makes a product with this rank's part of the input the one with all of it; None if the rank has all."""
        in_parts = isinstance(self.layer, RowParallelLinear) and self.layer.tp_size > 1
        return (lambda h: tensor_model_parallel_all_reduce(h.clone())) if in_parts else None


Shares = Mapping[str, tuple[LowRank | None, ...]]
SiteGates = Mapping[str, tuple[LayerGate | None, ...]]
T = TypeVar("T")


class Placed(NamedTuple):
    """An expert in a model of vLLM.

    shares: site name -> its factors of each of the site's weights on this rank, None for those it leaves alone
    reads: what it does at each of `first_sites`: factors of the singular values and right singular vectors that its delta of
        the first weight it touches there has, over all ranks, with another b of [rank, rank]
    gated: as shares, but canonical, for gated tokens; empty if `shares` serve those too, or nothing is gated
    gates: as shares, of those weights for which any were trained
    """

    shares: Shares
    reads: Mapping[Place, LowRank]
    gated: Shares = MappingProxyType({})
    gates: SiteGates = MappingProxyType({})


def find_sites(model: nn.Module) -> dict[str, Site]:
    """All linear layers within the decoder's layers, by vLLM's name.

    Without what sits beside routed experts: vLLM may multiply by a router's weight without asking the router.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules())
    routed = {name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, MoERunner)}
    return {
        name: _site(name, module, packed)
        for name, module in modules.items()
        if isinstance(module, LinearBase) and layer_of(name) is not None and name.rpartition(".")[0] not in routed
    }


def place(expert: Expert, model: nn.Module, sites: Mapping[str, Site], keep: Callable[[Tensor], Tensor]) -> Placed:
    """An expert on this rank; a weight whose delta is zero it leaves alone. keep: gives a factor the dtype to keep it in

    Raises ExpertError if the expert touches something that is no linear layer of this base, or does not fit its shape.
    """
    factors = _renamed(model, expert.factors)
    known = {weight for site in sites.values() for weight in site.weights}
    for name in factors:
        if name not in known:
            raise ExpertError(f"expert {expert.name!r}: {name} is not a linear layer of this base that can be mixed")
    shares = {
        name: share
        for name, site in sites.items()
        if any(share := tuple(_share(expert.name, site, i, factors.get(w), keep) for i, w in enumerate(site.weights)))
    }
    first = {where: site for where, site in first_sites(sites).items() if site.name in shares}
    return Placed(shares, {where: _reads(shares[site.name], site, factors, keep) for where, site in first.items()})


def place_gated(  # noqa: PLR0913 - one part each
    expert: Expert,
    model: nn.Module,
    sites: Mapping[str, Site],
    keep: Callable[[Tensor], Tensor],
    *,
    apart: bool,
    gates: Gates,
) -> Placed:
    """As `place`, with canonical factors, as gating wants them; if `apart` these are in float32 beside those as they are.

    gates: of all experts. Raises ExpertError too if those of this one are not of its ranks
    """
    canonical = canonical_expert(expert)
    own = gates.get(expert.digest, {})
    for module, gate in own.items():
        if module not in canonical.factors or len(gate.g) != canonical.factors[module].rank:
            raise ExpertError(
                f"expert {expert.name!r}: its trained gates do not fit {module}; make them anew: tta router gates"
            )
    exact = place(canonical, model, sites, Tensor.float if apart else keep)
    by_weight = _renamed(model, own)
    of_sites = {name: tuple(by_weight.get(w) for w in sites[name].weights) for name in exact.shares} if own else {}
    placed = place(expert, model, sites, keep)._replace(gated=exact.shares) if apart else exact
    return placed._replace(gates=of_sites)


def first_sites(sites: Mapping[str, Site]) -> dict[Place, Site]:
    """The first linear layer of each attention and MLP, where every rank has the whole of its input."""
    first: dict[Place, Site] = {}
    for site in sites.values():
        if not isinstance(site.layer, RowParallelLinear):
            first.setdefault(site.place, site)
    return first


def tapped_site(sites: Mapping[str, Site], layer: int) -> str:
    """The first linear layer of decoder layer `layer`: its input is what routing reads."""
    for name, site in sites.items():
        if site.place.layer == layer:
            return name
    raise ExpertError(f"the base has no layer {layer} to read features from")


def _site(name: str, layer: LinearBase, packed: Mapping[str, list[str]]) -> Site:
    parent, _, leaf = name.rpartition(".")
    parts, sizes = packed.get(leaf, [leaf]), _full_sizes(layer)
    local = _local_sizes(layer, sizes)
    if len(parts) != len(sizes):  # the base itself stores the fused weight, so experts speak of it as one
        parts, sizes, local = [leaf], (sum(sizes),), (sum(local),)
    index = layer_of(name)
    assert index is not None
    where = Place(index, "attention" if "att" in parent.rpartition(".")[2] else "mlp")
    return Site(name, layer, where, tuple(f"{parent}.{part}" for part in parts), sizes, local)


def _full_sizes(layer: LinearBase) -> tuple[int, ...]:
    """Output size of each weight stacked in a layer, over all tensor-parallel ranks."""
    if isinstance(layer, QKVParallelLinear):
        kv = layer.total_num_kv_heads
        return layer.total_num_heads * layer.head_size, kv * layer.head_size, kv * layer.v_head_size
    return tuple(getattr(layer, "output_sizes", None) or [layer.output_size])


def _renamed(model: nn.Module, by_module: Mapping[str, T]) -> dict[str, T]:
    """What an expert has, under vLLM's module names."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return dict(by_module)
    names = mapper.get_rename_mapper().apply_list(list(by_module))
    return dict(zip(names, by_module.values(), strict=True))


def _share(expert: str, site: Site, part: int, factor: LowRank | None, keep: Callable[[Tensor], Tensor]) -> LowRank | None:
    if factor is None:
        return None
    _check_shape(expert, site.weights[part], factor, site.layer.input_size, site.sizes[part])
    if not factor.b.any():
        return None
    fused_in_base = len(site.weights) == 1 < len(_full_sizes(site.layer))
    a, b = _shard_fused(site.layer, factor) if fused_in_base else _shard(site.layer, part, site.sizes[part], factor)
    # B is kept as the transpose of a contiguous matrix, in the order in which a bank stacks it.
    return LowRank(keep(a).contiguous(), keep(b.t()).contiguous().t())


def _reads(
    share: Sequence[LowRank | None], site: Site, factors: Mapping[str, LowRank], keep: Callable[[Tensor], Tensor]
) -> LowRank:
    """b = Q R, and Q changes neither singular values nor right singular vectors. a is the share's, which has all of it."""
    weight, part = next((weight, part) for weight, part in zip(site.weights, share, strict=True) if part is not None)
    return LowRank(part.a, torch.linalg.qr(keep(factors[weight].b).double()).R)


def _check_shape(expert: str, part: str, factor: LowRank, wanted_in: int, wanted_out: int) -> None:
    got = (factor.b.shape[0], factor.a.shape[1])
    if got != (wanted_out, wanted_in):
        raise ExpertError(f"expert {expert!r}: {part} is for a weight of {got}, this base has {(wanted_out, wanted_in)}")


def _shard(layer: LinearBase, part: int, size: int, factor: LowRank) -> LowRank:
    """The factor's part on this tensor-parallel rank: columns of A for a row-parallel layer, rows of B for the others."""
    if layer.tp_size == 1:
        return factor
    if isinstance(layer, RowParallelLinear):
        width = layer.input_size_per_partition
        return LowRank(factor.a[:, layer.tp_rank * width : (layer.tp_rank + 1) * width], factor.b)
    rows, index = _local_rows(layer, part, size)
    return LowRank(factor.a, factor.b[index * rows : (index + 1) * rows])


def _shard_fused(layer: LinearBase, factor: LowRank) -> LowRank:
    sizes = _full_sizes(layer)
    pieces = factor.b.split(list(sizes))
    return LowRank(factor.a, torch.cat([_shard(layer, i, sizes[i], LowRank(factor.a, b)).b for i, b in enumerate(pieces)]))


def _local_rows(layer: LinearBase, part: int, size: int) -> tuple[int, int]:
    """How many output rows of slice `part` live here, and which block of the full slice they are."""
    if isinstance(layer, QKVParallelLinear) and part > 0:
        head = layer.head_size if part == 1 else layer.v_head_size
        return layer.num_kv_heads * head, layer.tp_rank // layer.num_kv_head_replicas
    if isinstance(layer, ColumnParallelLinear):
        return size // layer.tp_size, layer.tp_rank
    return size, 0


def _local_sizes(layer: LinearBase, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, RowParallelLinear) or layer.tp_size == 1:
        return sizes
    return tuple(_local_rows(layer, i, size)[0] for i, size in enumerate(sizes))
