"""Where experts go in a model of vLLM: its linear layers, and a rank's share of factors."""

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

from adapters.bank.layer_gates import Gates, LayerGate
from adapters.coefficient import Place, layer_of
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.low_rank import make_canonical_expert


@dataclass(frozen=True)
class LinearSite:
    """One linear layer of the decoder, to which experts may add."""

    name: str
    """vLLM's name of it."""
    layer: LinearBase
    """The layer itself."""
    place: Place
    """The attention or MLP that it is part of."""
    weights: tuple[str, ...]
    """The base's own names of the weights stacked in it."""
    sizes: tuple[int, ...]
    """Their full output sizes."""
    local_sizes: tuple[int, ...]
    """Their output sizes on this rank."""

    @property
    def whole(self) -> Callable[[Tensor], Tensor] | None:
        """Makes a product with this rank's part of the input the one with all of it.

        It is None if the rank has all of the input.
        """
        in_parts = isinstance(self.layer, RowParallelLinear) and self.layer.tp_size > 1
        return (lambda h: tensor_model_parallel_all_reduce(h.clone())) if in_parts else None


Shares = Mapping[str, tuple[LowRank | None, ...]]
SiteGates = Mapping[str, tuple[LayerGate | None, ...]]
T = TypeVar("T")


class PlacedExpert(NamedTuple):
    """An expert in a model of vLLM, as far as one tensor-parallel rank holds it."""

    shares: Shares
    """By site name, the factors of each of the site's weights, None for those it leaves alone."""
    reads: Mapping[Place, LowRank]
    """What it does at each of `find_first_sites`: factors with the singular values and
    right singular vectors of its delta of the first weight it touches there, over all ranks,
    but with another b, of [rank, rank]."""
    gated: Shares = MappingProxyType({})
    """As `shares`, but canonical, for gated tokens; empty if `shares` serve those too, or nothing
    is gated."""
    gates: SiteGates = MappingProxyType({})
    """As `shares`, the trained gates of those weights that have any."""


def find_sites(model: nn.Module) -> dict[str, LinearSite]:
    """Return all linear layers within the decoder's layers, by vLLM's name.

    What sits beside routed experts is left out: vLLM may multiply by a router's weight without
    asking the router.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules())
    routed = {
        name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, MoERunner)
    }
    return {
        name: _site(name, module, packed)
        for name, module in modules.items()
        if isinstance(module, LinearBase)
        and layer_of(name) is not None
        and name.rpartition(".")[0] not in routed
    }


def place_expert(
    expert: Expert,
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    keep: Callable[[Tensor], Tensor],
) -> PlacedExpert:
    """Return an expert on this rank; a weight whose delta is zero it leaves alone.

    Args:
        expert: The expert, by the base's own names.
        model: vLLM's model.
        sites: The model's sites.
        keep: Gives a factor the dtype to keep it in.

    Raises:
        ExpertError: The expert touches something that is no linear layer of this base, or does not
            fit its shape.
    """
    # Refuse what has no place.
    factors = _renamed(model, expert.factors)
    known = {weight for site in sites.values() for weight in site.weights}
    for name in factors:
        if name not in known:
            raise ExpertError(
                f"expert {expert.name!r}: {name} is not a linear layer of this base that can be"
                " mixed"
            )

    # Take this rank's share at every site that the expert touches.
    shares = {}
    for name, site in sites.items():
        share = tuple(
            _share(expert.name, site, i, factors.get(w), keep) for i, w in enumerate(site.weights)
        )
        if any(share):
            shares[name] = share

    # Say what it reads where probes look.
    reads = {
        where: _reads(shares[site.name], site, factors, keep)
        for where, site in find_first_sites(sites).items()
        if site.name in shares
    }
    return PlacedExpert(shares, reads)


def place_gated_expert(  # noqa: PLR0913 - one part each
    expert: Expert,
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    keep: Callable[[Tensor], Tensor],
    *,
    apart: bool,
    gates: Gates,
) -> PlacedExpert:
    """Return an expert on this rank with canonical factors, as gating wants them.

    Args:
        expert: The expert, by the base's own names.
        model: vLLM's model.
        sites: The model's sites.
        keep: Gives a factor the dtype to keep it in.
        apart: Whether canonical factors, then in float32, are kept beside those of `place_expert`,
            for gated tokens alone.
        gates: The trained gates of all experts.

    Raises:
        ExpertError: As `place_expert` does, and if the expert's gates are not of its ranks.
    """
    # Refuse gates that were trained for other factors.
    canonical = make_canonical_expert(expert)
    own = gates.get(expert.digest, {})
    for module, gate in own.items():
        if module not in canonical.factors or len(gate.g) != canonical.factors[module].rank:
            raise ExpertError(
                f"expert {expert.name!r}: its trained gates do not fit {module}; make them anew:"
                " tta router gates"
            )

    # Place the factors, and the gates where they go.
    exact = place_expert(canonical, model, sites, Tensor.float if apart else keep)
    gates_of = _renamed(model, own)
    by_site = (
        {name: tuple(gates_of.get(w) for w in sites[name].weights) for name in exact.shares}
        if own
        else {}
    )
    if not apart:
        return exact._replace(gates=by_site)
    plain = place_expert(expert, model, sites, keep)
    return plain._replace(gated=exact.shares, gates=by_site)


def find_first_sites(sites: Mapping[str, LinearSite]) -> dict[Place, LinearSite]:
    """Return the first linear layer of each attention and MLP.

    There every rank has the whole of the input.
    """
    first: dict[Place, LinearSite] = {}
    for site in sites.values():
        if not isinstance(site.layer, RowParallelLinear):
            first.setdefault(site.place, site)
    return first


def find_tapped_site(sites: Mapping[str, LinearSite], layer: int) -> str:
    """Return the first linear layer of a decoder layer, whose input is what routing reads."""
    for name, site in sites.items():
        if site.place.layer == layer:
            return name
    raise ExpertError(f"the base has no layer {layer} to read features from")


def _site(name: str, layer: LinearBase, packed: Mapping[str, list[str]]) -> LinearSite:
    parent, _, leaf = name.rpartition(".")
    parts = packed.get(leaf, [leaf])
    sizes = _full_sizes(layer)
    local = _local_sizes(layer, sizes)
    if len(parts) != len(sizes):
        # The base itself stores the fused weight, so experts speak of it as one.
        parts = [leaf]
        sizes = (sum(sizes),)
        local = (sum(local),)
    index = layer_of(name)
    assert index is not None
    where = Place(index, "attention" if "att" in parent.rpartition(".")[2] else "mlp")
    return LinearSite(name, layer, where, tuple(f"{parent}.{part}" for part in parts), sizes, local)


def _full_sizes(layer: LinearBase) -> tuple[int, ...]:
    """Return the output size of each weight stacked in a layer, over all tensor-parallel ranks."""
    if isinstance(layer, QKVParallelLinear):
        kv = layer.total_num_kv_heads
        return layer.total_num_heads * layer.head_size, kv * layer.head_size, kv * layer.v_head_size
    return tuple(getattr(layer, "output_sizes", None) or [layer.output_size])


def _renamed(model: nn.Module, by_module: Mapping[str, T]) -> dict[str, T]:
    """Return what an expert has, under vLLM's module names."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return dict(by_module)
    names = mapper.get_rename_mapper().apply_list(list(by_module))
    return dict(zip(names, by_module.values(), strict=True))


def _share(
    expert: str,
    site: LinearSite,
    part: int,
    factor: LowRank | None,
    keep: Callable[[Tensor], Tensor],
) -> LowRank | None:
    """Return this rank's share of the factors of a weight, None if there is no delta."""
    if factor is None:
        return None
    _check_shape(expert, site.weights[part], factor, site.layer.input_size, site.sizes[part])
    if not factor.b.any():
        return None
    fused_in_base = len(site.weights) == 1 < len(_full_sizes(site.layer))
    a, b = (
        _shard_fused(site.layer, factor)
        if fused_in_base
        else _shard(site.layer, part, site.sizes[part], factor)
    )
    # B is kept as the transpose of a contiguous matrix, in the order in which a bank stacks it.
    return LowRank(keep(a).contiguous(), keep(b.t()).contiguous().t())


def _reads(
    share: Sequence[LowRank | None],
    site: LinearSite,
    factors: Mapping[str, LowRank],
    keep: Callable[[Tensor], Tensor],
) -> LowRank:
    """Return factors with the singular values and right singular vectors of a site's first delta.

    b = Q R, and Q changes neither. a is the share's, which has all of it.
    """
    weight, part = next(
        (weight, part) for weight, part in zip(site.weights, share, strict=True) if part is not None
    )
    return LowRank(part.a, torch.linalg.qr(keep(factors[weight].b).double()).R)


def _check_shape(expert: str, part: str, factor: LowRank, wanted_in: int, wanted_out: int) -> None:
    got = (factor.b.shape[0], factor.a.shape[1])
    if got != (wanted_out, wanted_in):
        raise ExpertError(
            f"expert {expert!r}: {part} is for a weight of {got}, this base has"
            f" {(wanted_out, wanted_in)}"
        )


def _shard(layer: LinearBase, part: int, size: int, factor: LowRank) -> LowRank:
    """Return the factors' part on this tensor-parallel rank.

    These are columns of A for a row-parallel layer, rows of B for the others.
    """
    if layer.tp_size == 1:
        return factor
    if isinstance(layer, RowParallelLinear):
        width = layer.input_size_per_partition
        return LowRank(factor.a[:, layer.tp_rank * width : (layer.tp_rank + 1) * width], factor.b)
    rows, index = _local_rows(layer, part, size)
    return LowRank(factor.a, factor.b[index * rows : (index + 1) * rows])


def _shard_fused(layer: LinearBase, factor: LowRank) -> LowRank:
    """Return the part of factors of a fused weight, of which each slice is sharded by itself."""
    sizes = _full_sizes(layer)
    pieces = factor.b.split(list(sizes))
    mine = [_shard(layer, i, sizes[i], LowRank(factor.a, b)).b for i, b in enumerate(pieces)]
    return LowRank(factor.a, torch.cat(mine))


def _local_rows(layer: LinearBase, part: int, size: int) -> tuple[int, int]:
    """Return how many output rows of slice `part` live here, and which block of it these are."""
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
