"""Shares from the bank's own product, against dense decompositions and against PEFT's Arrow."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.config import ArrowConfig
from torch import Tensor, nn

from adapters.bank.bank import Bank, build_bank
from adapters.bank.layer_gates import LayerGate
from adapters.bank.token_gating import NUMBERS, Gating, Sharing, compute_shares, prepare_sharing
from adapters.expert import LowRank
from adapters.low_rank import make_canonical
from tests.factories.deltas import make_factor
from tests.factories.experts import make_gate
from tests.reference import gated_shares, read

GATINGS = [
    Gating("arrow", 3, 1.0),
    Gating("arrow", 1, 0.5),
    Gating("spectr", 4),
    Gating("spectr", 2),
    Gating("spectr", 2, 0.3),
    Gating("arrow", 9, 2.0),
    Gating("trained", 3, 1.0),
    Gating("trained", 2),
    None,
]
OUTS = [12, 5, 7]
EXPERTS = 5


def weights() -> list[list[LowRank | None]]:
    """Return three weights of a layer: some experts leave the second alone, and all the third."""
    first: list[LowRank | None] = [
        make_factor(rank, 12, 10, seed) for seed, rank in enumerate((8, 3, 1, 8, 2))
    ]
    second = [
        make_factor(2, 5, 10, 7),
        None,
        make_factor(4, 5, 10, 8),
        None,
        make_factor(1, 5, 10, 9),
    ]
    return [first, second, [None] * EXPERTS]


def gates(
    weights: Sequence[Sequence[LowRank | None]], seed: int = 5
) -> list[list[LayerGate | None]]:
    """Return random gates of some of the experts."""
    g = torch.Generator().manual_seed(seed)
    return [
        [make_gate(f, g) if f and k != 1 else None for k, f in enumerate(part)] for part in weights
    ]


def bank_of(weights: Sequence[Sequence[LowRank | None]], outs: Sequence[int] = OUTS) -> Bank:
    bank = build_bank(
        [[f and make_canonical(f) for f in part] for part in weights], outs, gates(weights)
    )
    assert bank is not None
    return bank


def added(  # noqa: PLR0913 - one part each
    bank: Bank,
    y: Tensor,
    x: Tensor,
    c: Tensor,
    gatings: Sequence[Gating | None],
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    return bank.add_(y.clone(), x, of(gatings, c, bank), whole)


def of(gatings: Sequence[Gating | None], c: Tensor, bank: Bank) -> Sharing:
    return prepare_sharing(
        c, torch.tensor([g.numbers if g else [0.0] * NUMBERS for g in gatings]), bank.blocks
    )


def inputs(tokens: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, 10, generator=torch.Generator().manual_seed(seed))


def test_each_token_shares_each_weight_by_its_own_gating_and_candidates() -> None:
    g, parts = torch.Generator().manual_seed(2), weights()
    gatings = GATINGS * 10
    x, n = inputs(len(gatings)), len(gatings)
    c = torch.randn(n, EXPERTS, generator=g) * (torch.rand(n, EXPERTS, generator=g) < 0.7)
    c[3] = 0
    bank = bank_of(parts)
    y = added(bank, torch.zeros(n, sum(OUTS)), x, c[:, bank.expert], gatings)
    for t, gating in enumerate(gatings):
        wanted = []
        for part, trained, out in zip(parts, gates(parts), OUTS, strict=True):
            dense = {k: f.dense() for k, f in enumerate(part) if f is not None}
            used = {k: float(c[t, k]) for k in dense if c[t, k]}
            if gating:
                reads = {k: read(dense[k]) for k in used}
                used = {
                    k: float(s)
                    for k, s in gated_shares(
                        reads, gating, x[t : t + 1], dict(enumerate(trained))
                    ).items()
                }
            wanted.append(sum((s * dense[k] @ x[t] for k, s in used.items()), torch.zeros(out)))
        torch.testing.assert_close(y[t], torch.cat(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_arrow_is_pefts(top: int) -> None:
    """Spectra fall fast, so that PEFT's fifteen power iterations arrive at the singular vector."""
    g, names = torch.Generator().manual_seed(0), ["task_0", "task_1", "task_2"]
    fall = 0.25 ** torch.arange(4)
    a = {name: torch.randn(4, 10, generator=g) * fall[:, None] for name in names}
    b = {name: torch.randn(12, 4, generator=g) for name in names}
    config = ArrowConfig(top_k=top, router_temperature=0.7, rng_seed=0)
    config.task_adapter_names, config.gks_adapter_names = names, []
    layer = ArrowLoraLinearLayer(10, config)
    lora_a, lora_b = (nn.ModuleDict({n: _linear(w) for n, w in of.items()}) for of in (a, b))
    layer.build_prototypes(lora_a, lora_b)
    scaling, x = dict(zip(names, (2.0, 0.5, 1.0), strict=True)), inputs(40)
    with torch.no_grad():
        theirs = layer(x.unsqueeze(0), lora_a, lora_b, nn.Identity(), scaling)[0]
    bank = bank_of([[LowRank(a[n], scaling[n] * b[n]) for n in names]], [12])
    gatings = [Gating("arrow", top, 0.7)] * 40
    ours = added(bank, torch.zeros(40, 12), x, torch.ones(40, len(bank.expert)), gatings)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return linear


@pytest.mark.parametrize("gating", [g for g in GATINGS if g])
def test_how_an_expert_is_scaled_or_written_changes_no_share(gating: Gating) -> None:
    parts, x = weights(), inputs(30)
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    one = parts[0][0]
    assert one is not None
    same = LowRank(torch.linalg.solve(turn, one.a), one.b @ turn)
    scaled = [[f and LowRank(f.a, -3 * f.b) for f in part] for part in parts]
    turned = [[same, *parts[0][1:]], *parts[1:]]
    torch.testing.assert_close(shared(scaled, x, gating), shared(parts, x, gating))
    torch.testing.assert_close(
        shared(turned, x, gating), shared(parts, x, gating), rtol=1e-3, atol=1e-4
    )


def shared(parts: Sequence[Sequence[LowRank | None]], x: Tensor, gating: Gating) -> Tensor:
    bank = bank_of(parts)
    h = x @ bank.a.t()
    return compute_shares(h, of([gating] * len(x), torch.ones_like(h), bank))


def test_an_input_that_one_expert_alone_reads_is_its_own() -> None:
    """Three experts that read two coordinates each: scores are known."""
    eye, out = torch.eye(6), torch.eye(3)
    parts = [
        [LowRank(eye[2 * k : 2 * k + 2], torch.stack([out[k], out[k] / 2], 1)) for k in range(3)]
    ]
    bank = build_bank(parts, [3])
    assert bank is not None
    x = torch.tensor([[3.0, 4.0, 0.0, 1.0, 0.5, 0.0]])
    for gating, wanted in [
        (Gating("arrow", 3, 1.0), torch.tensor([3.0, 0.0, 0.5]).softmax(0)),
        (Gating("spectr", 3, 1.0), torch.tensor([5.0, 1.0, 0.5]).softmax(0)),
        (Gating("arrow", 2), torch.tensor([0.5, 0.0, 0.5])),
        (Gating("spectr", 2), torch.tensor([0.5, 0.5, 0.0])),
        (Gating("spectr", 1, 1.0), torch.tensor([1.0, 0.0, 0.0])),
    ]:
        y = added(bank, torch.zeros(1, 3), x, torch.ones(1, 6), [gating])
        torch.testing.assert_close(y[0], wanted * torch.tensor([5.0, 0.5, 0.5]))


def test_a_token_without_candidates_is_the_bases_and_a_mixed_batch_is_each_token_alone() -> None:
    n = len(GATINGS)
    bank, x, y = bank_of(weights()), inputs(n), torch.randn(n, sum(OUTS))
    c = torch.ones(n, len(bank.expert))
    c[2] = 0
    together = added(bank, y, x, c, GATINGS)
    assert torch.equal(together[2], y[2])
    for t, gating in enumerate(GATINGS):
        one = slice(t, t + 1)
        alone = (
            added(bank, y[one], x[one], c[one], [gating])
            if gating
            else bank.add_(y[one].clone(), x[one], c[one])
        )
        torch.testing.assert_close(together[t], alone[0])


def test_parts_of_the_inputs_score_as_the_whole() -> None:
    """A layer may have its inputs spread over ranks: each adds its part, by shares of the whole."""
    bank, x = bank_of(weights()), inputs(6)
    c, gatings = torch.ones(6, len(bank.expert)), GATINGS[:6]
    parts = [(replace(bank, a=bank.a[:, half]), x[:, half]) for half in (slice(4), slice(4, 10))]
    summed = sum((p @ part.a.t() for part, p in parts), torch.zeros(6, len(bank.expert)))
    ys = [
        added(part, torch.zeros(6, sum(OUTS)), p, c, gatings, lambda _: summed) for part, p in parts
    ]
    torch.testing.assert_close(
        ys[0] + ys[1], added(bank, torch.zeros(6, sum(OUTS)), x, c, gatings), rtol=1e-4, atol=1e-5
    )
