"""An expert in a model of vLLM: a tensor-parallel rank's share of its factors."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from adapters.bank.layer_gates import Gates, LayerGate
from adapters.bank.sign_bank import Signs
from adapters.coefficient import EMBEDDING, Place
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.low_rank import make_canonical, make_canonical_expert
from tta_serve.engine.worker.sites import (
    MixtureSite,
    explain_no_site,
    find_first_sites,
    find_local_rows,
    full_sizes,
)

Shares = Mapping[str, tuple[LowRank | None, ...]]
SiteGates = Mapping[str, tuple[LayerGate | None, ...]]
SiteSigns = Mapping[str, tuple[Signs | None, ...]]
Keep = Callable[[MixtureSite, Tensor], Tensor]
T = TypeVar("T")


class PlacedExpert(NamedTuple):
    """An expert in a model of vLLM, as far as one tensor-parallel rank holds it.

    Of a token embedding it has the factors of the linear layer that `MixtureSite` makes of it.
    """

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
    signs: SiteSigns = MappingProxyType({})
    """As `shares`, the signs of each weight that the expert has one bit for each entry of."""
    biases: Mapping[str, Tensor] = MappingProxyType({})
    """By site name, [1, outputs], what it adds to the biases."""
    norms: Mapping[str, Tensor] = MappingProxyType({})
    """By the name of a `NormSite`, [vectors, size], what it adds to the norm's vectors."""

    @property
    def rank(self) -> int:
        """The highest rank of its factors."""
        return max((factor.rank for factor in self._factors), default=0)

    @property
    def nbytes(self) -> int:
        """The bytes of all that it consists of, on this rank."""
        signs = (s for weights in self.signs.values() for s in weights if s is not None)
        return (
            sum(factor.a.nbytes + factor.b.nbytes for factor in self._factors)
            + sum(s.nbytes for s in signs)
            + sum(vector.nbytes for vector in (*self.biases.values(), *self.norms.values()))
        )

    @property
    def _factors(self) -> list[LowRank]:
        shares = *self.shares.values(), *self.gated.values()
        return [factor for weights in shares for factor in weights if factor is not None]


def place_expert(
    expert: Expert, model: nn.Module, sites: Mapping[str, MixtureSite], keep: Keep
) -> PlacedExpert:
    """Return an expert on this rank; a weight whose delta is zero it leaves alone.

    Args:
        expert: The expert, by the base's own names.
        model: vLLM's model.
        sites: The model's sites.
        keep: Gives a factor of a site the dtype to keep it in.

    Raises:
        ExpertError: The expert touches something that is no site of this base, or does not fit its
            shape.
    """
    factors = _fit(expert, model, sites)
    return _place(_turn(factors, sites, lambda factor: factor), sites, keep)


def place_gated_expert(  # noqa: PLR0913 - one part each
    expert: Expert,
    model: nn.Module,
    sites: Mapping[str, MixtureSite],
    keep: Keep,
    *,
    apart: bool,
    gates: Gates,
) -> PlacedExpert:
    """Return an expert on this rank with canonical factors, as gating wants them.

    Args:
        expert: The expert, by the base's own names.
        model: vLLM's model.
        sites: The model's sites.
        keep: Gives a factor of a site the dtype to keep it in.
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
    gates_of = _rename(model, own)
    exact = _place(
        _turn(_fit(canonical, model, sites), sites, make_canonical),
        sites,
        (lambda _, factor: factor.float()) if apart else keep,
    )
    by_site = (
        {name: tuple(gates_of.get(w) for w in sites[name].weights) for name in exact.shares}
        if own
        else {}
    )
    if not apart:
        return exact._replace(gates=by_site)
    return place_expert(expert, model, sites, keep)._replace(gated=exact.shares, gates=by_site)


def _fit(expert: Expert, model: nn.Module, sites: Mapping[str, MixtureSite]) -> dict[str, LowRank]:
    """Return an expert's factors by vLLM's names of weights.

    Raises:
        ExpertError: As `place_expert` does.
    """
    by_weight = {weight: (s, i) for s in sites.values() for i, weight in enumerate(s.weights)}
    factors = _rename(model, expert.factors)
    if len(factors) < len(expert.factors):
        raise ExpertError(
            f"expert {expert.name!r} changes a module of this base under two names; keep one of"
            f" them, of {', '.join(expert.factors)}"
        )
    for module, weight in zip(expert.factors, factors, strict=True):
        if weight not in by_weight:
            raise ExpertError(f"expert {expert.name!r}: {module} {explain_no_site(model, weight)}")

        site, part = by_weight[weight]
        a, b = factors[weight]
        got, wanted = (len(b), a.shape[1]), (site.sizes[part], site.inputs)
        wanted = wanted[::-1] if site.place == EMBEDDING else wanted
        if got != wanted:
            raise ExpertError(
                f"expert {expert.name!r}: {module} is for a weight of {got}, this base has {wanted}"
            )
    return factors


def _turn(
    factors: Mapping[str, LowRank],
    sites: Mapping[str, MixtureSite],
    change: Callable[[LowRank], LowRank],
) -> dict[str, LowRank]:
    """Return factors with those of a token embedding turned to those of its linear layer.

    Args:
        factors: By vLLM's names of weights.
        sites: The model's sites.
        change: What else to make of those that were turned.
    """
    turned = {w for s in sites.values() if s.place == EMBEDDING for w in s.weights}
    return {
        weight: change(LowRank(b.t(), a.t())) if weight in turned else LowRank(a, b)
        for weight, (a, b) in factors.items()
    }


def _rename(model: nn.Module, by_module: Mapping[str, T]) -> dict[str, T]:
    """Return what an expert has, under vLLM's module names."""
    # The rules are of weights: `lm_head.` is renamed, and `lm_head` would not be.
    weights = rename_weights(model, [f"{module}.weight" for module in by_module])
    names = [weight.removesuffix(".weight") for weight in weights]
    return dict(zip(names, by_module.values(), strict=True))


def rename_weights(model: nn.Module, weights: Sequence[str]) -> list[str]:
    """Return vLLM's names of weights of the base's checkpoint."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return list(weights) if mapper is None else mapper.get_rename_mapper().apply_list(weights)


def _place(
    factors: Mapping[str, LowRank], sites: Mapping[str, MixtureSite], keep: Keep
) -> PlacedExpert:
    # Take this rank's share at every site that the expert touches.
    shares = {}
    for name, site in sites.items():
        share = tuple(_share(site, i, factors.get(w), keep) for i, w in enumerate(site.weights))
        if any(share):
            shares[name] = share

    # Say what it reads where probes look.
    reads = {
        where: _reads(shares[site.name], site, factors, keep)
        for where, site in find_first_sites(sites).items()
        if site.name in shares
    }
    return PlacedExpert(shares, reads)


def _reads(
    share: Sequence[LowRank | None], site: MixtureSite, factors: Mapping[str, LowRank], keep: Keep
) -> LowRank:
    """Return factors with the singular values and right singular vectors of a site's first delta.

    b = Q R, and Q changes neither. a is the share's, which has all of it.
    """
    weight, part = next(
        (weight, part) for weight, part in zip(site.weights, share, strict=True) if part is not None
    )
    return LowRank(part.a, torch.linalg.qr(keep(site, factors[weight].b).double()).R)


def _share(site: MixtureSite, part: int, factor: LowRank | None, keep: Keep) -> LowRank | None:
    """Return this rank's share of the factors of a weight, None if there is no delta."""
    if factor is None or not factor.a.any() or not factor.b.any():
        return None
    a, b = shard_factor(site, part, factor)
    # B is kept as the transpose of a contiguous matrix, in the order in which a bank stacks it.
    return LowRank(keep(site, a).contiguous(), keep(site, b.t()).contiguous().t())


def shard_factor(site: MixtureSite, part: int, factor: LowRank) -> LowRank:
    """Return this rank's share of the factors of a site's weight of this number."""
    layer = site.layer
    if isinstance(layer, ParallelLMHead):
        return LowRank(factor.a, _shard_words(layer, factor.b))
    if not isinstance(layer, LinearBase):
        return factor
    fused_in_base = len(site.weights) == 1 < len(full_sizes(layer))
    return (
        _shard_fused(layer, factor)
        if fused_in_base
        else _shard_linear(layer, part, site.sizes[part], factor)
    )


def _shard_words(layer: ParallelLMHead, b: Tensor) -> Tensor:
    """Return the rows of this rank's words, and zeros where vLLM fills its weight up."""
    indices = layer.shard_indices
    mine = b[indices.org_vocab_start_index : indices.org_vocab_end_index]
    return torch.nn.functional.pad(mine, (0, 0, 0, layer.num_embeddings_per_partition - len(mine)))


def _shard_linear(layer: LinearBase, part: int, size: int, factor: LowRank) -> LowRank:
    """Return the factors' part on this tensor-parallel rank.

    These are columns of A for a row-parallel layer, rows of B for the others.
    """
    if layer.tp_size == 1:
        return factor
    if isinstance(layer, RowParallelLinear):
        width = layer.input_size_per_partition
        return LowRank(factor.a[:, layer.tp_rank * width : (layer.tp_rank + 1) * width], factor.b)
    rows, index = find_local_rows(layer, part, size)
    return LowRank(factor.a, factor.b[index * rows : (index + 1) * rows])


def _shard_fused(layer: LinearBase, factor: LowRank) -> LowRank:
    """Return the part of factors of a fused weight, of which each slice is sharded by itself."""
    sizes = full_sizes(layer)
    pieces = factor.b.split(list(sizes))
    mine = [_shard_linear(layer, i, sizes[i], LowRank(factor.a, b)).b for i, b in enumerate(pieces)]
    return LowRank(factor.a, torch.cat(mine))
