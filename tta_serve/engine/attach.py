"""Give every linear layer that an expert touches its bank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
)

from adapters.bank import Bank, fuse, stack
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from tta_serve.engine.mixture import MixtureMethod, StepState


@dataclass(frozen=True)
class Site:
    """One linear layer. `slices` are the base's own names of the weights stacked in it, `sizes` their full output sizes."""

    name: str
    layer: LinearBase
    slices: tuple[str, ...]
    sizes: tuple[int, ...]


def attach(model: nn.Module, experts: Sequence[Expert], state: StepState, dtype: torch.dtype, tap_layer: int | None) -> int:
    """Install banks and the tap. Returns the bytes of all banks on this worker.

    Raises ExpertError if an expert touches something that is no linear layer of this base, or does not fit its shape.
    """
    sites = list(_sites(model))
    factors = [_renamed(model, expert) for expert in experts]
    _check_placed(experts, factors, sites)
    tapped = _tapped(sites, tap_layer)
    size = 0
    for site in sites:
        bank = _bank(site, experts, factors)
        if bank is not None:
            bank = bank.to(state.coefficients.device, dtype)
            size += (bank.a.numel() + bank.b.numel()) * bank.a.element_size()
        if bank is not None or site.name == tapped:
            site.layer.quant_method = MixtureMethod(site.layer.quant_method, bank, state, site.name == tapped)
    return size


def _sites(model: nn.Module) -> Iterator[Site]:
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for name, layer in model.named_modules():
        if isinstance(layer, LinearBase):
            parent, _, leaf = name.rpartition(".")
            parts = packed.get(leaf, [leaf])
            sizes = _full_sizes(layer)
            if len(parts) != len(sizes):  # the base itself stores the fused weight, so experts speak of it as one
                parts = [leaf]
            yield Site(name, layer, tuple(f"{parent}.{part}" for part in parts), sizes)


def _full_sizes(layer: LinearBase) -> tuple[int, ...]:
    """Output size of each weight stacked in a layer, over all tensor-parallel ranks."""
    if isinstance(layer, QKVParallelLinear):
        kv = layer.total_num_kv_heads
        return layer.total_num_heads * layer.head_size, kv * layer.head_size, kv * layer.v_head_size
    return tuple(getattr(layer, "output_sizes", None) or [layer.output_size])


def _renamed(model: nn.Module, expert: Expert) -> dict[str, LowRank]:
    """An expert's factors under vLLM's module names."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return dict(expert.factors)
    names = mapper.get_rename_mapper().apply_list(list(expert.factors))
    return dict(zip(names, expert.factors.values(), strict=True))


def _check_placed(experts: Sequence[Expert], factors: Sequence[dict[str, LowRank]], sites: Sequence[Site]) -> None:
    known = {part for site in sites for part in site.slices}
    for expert, mine in zip(experts, factors, strict=True):
        for module in mine:
            if module not in known:
                raise ExpertError(f"expert {expert.name!r}: {module} is not a linear layer of this base")


def _bank(site: Site, experts: Sequence[Expert], factors: Sequence[dict[str, LowRank]]) -> Bank | None:
    """The bank of one layer, this worker's shard of it."""
    fused_in_base = len(site.slices) == 1 < len(site.sizes)
    slice_sizes = (sum(site.sizes),) if fused_in_base else site.sizes
    banks = []
    for i, (part, size) in enumerate(zip(site.slices, slice_sizes, strict=True)):
        local: list[LowRank | None] = []
        for expert, mine in zip(experts, factors, strict=True):
            factor = mine.get(part)
            if factor is not None:
                _check_shape(expert.name, part, factor, site.layer.input_size, size)
                factor = _shard_fused(site, factor) if fused_in_base else _shard(site.layer, i, size, factor)
            local.append(factor)
        banks.append(stack(local))
    return fuse(banks, _local_sizes(site, fused_in_base))


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


def _shard_fused(site: Site, factor: LowRank) -> LowRank:
    pieces: list[Tensor] = []
    for i, b in enumerate(factor.b.split(list(site.sizes))):
        pieces.append(_shard(site.layer, i, site.sizes[i], LowRank(factor.a, b)).b)
    return LowRank(factor.a, torch.cat(pieces))


def _local_rows(layer: LinearBase, part: int, size: int) -> tuple[int, int]:
    """How many output rows of slice `part` live here, and which block of the full slice they are."""
    if isinstance(layer, QKVParallelLinear) and part > 0:
        head = layer.head_size if part == 1 else layer.v_head_size
        return layer.num_kv_heads * head, layer.tp_rank // layer.num_kv_head_replicas
    if isinstance(layer, ColumnParallelLinear):
        return size // layer.tp_size, layer.tp_rank
    return size, 0


def _local_sizes(site: Site, fused_in_base: bool) -> list[int]:
    if isinstance(site.layer, RowParallelLinear):
        return [site.layer.output_size]
    if site.layer.tp_size == 1:
        sizes = list(site.sizes)
    else:
        sizes = [_local_rows(site.layer, i, size)[0] for i, size in enumerate(site.sizes)]
    return [sum(sizes)] if fused_in_base else sizes


def _tapped(sites: Sequence[Site], tap_layer: int | None) -> str | None:
    """The first linear layer of decoder layer `tap_layer`: its input is what routing reads."""
    if tap_layer is None:
        return None
    for site in sites:
        if f".layers.{tap_layer}." in f".{site.name}":
            return site.name
    raise ExpertError(f"the base has no layer {tap_layer} to read features from")
