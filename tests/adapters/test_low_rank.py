"""Canonical factors, the one form that singular values give; and the best of a lower rank."""

import pytest
import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.low_rank import compress, energy_of, make_canonical, make_canonical_expert


def factors(out: int = 30, in_: int = 20, rank: int = 6, seed: int = 0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, in_, generator=g), torch.randn(out, rank, generator=g))


def best(delta: Tensor, rank: int) -> Tensor:
    """Return the truncated SVD, float64."""
    u, s, vt = torch.linalg.svd(delta.double(), full_matrices=False)
    truncated: Tensor = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return truncated


def exact(factor: LowRank) -> Tensor:
    return factor.b.double() @ factor.a.double()


SHAPES = [(30, 20, 6), (20, 30, 6), (8, 8, 8), (5, 40, 9), (40, 5, 9), (1, 7, 1), (7, 1, 2)]


@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
def test_the_delta_is_the_same_and_its_factors_are_the_svds(out: int, in_: int, rank: int) -> None:
    factor = factors(out, in_, rank)
    a, b = make_canonical(factor)
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(
        exact(LowRank(a, b)), exact(factor), rtol=0, atol=4e-7 * exact(factor).norm().item()
    )
    torch.testing.assert_close(a @ a.t(), torch.eye(len(a)))
    values = torch.linalg.svdvals(exact(factor))[: len(a)]
    torch.testing.assert_close(b.double().norm(dim=0), values, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        b.t() @ b, torch.diag(values.square()).float(), rtol=1e-4, atol=1e-4 * values[0].item() ** 2
    )
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_how_the_factors_are_written_does_not_matter() -> None:
    factor = factors()
    turn = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same = LowRank(torch.linalg.solve(turn, factor.a.double()), factor.b.double() @ turn)
    for one, other in zip(make_canonical(factor), make_canonical(same), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        make_canonical(factor), make_canonical(make_canonical(factor)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_rank_that_is_not_needed_goes() -> None:
    factor = factors()
    twice = LowRank(torch.cat([factor.a, factor.a]), torch.cat([factor.b, factor.b], 1) / 2)
    assert make_canonical(twice).rank == 6
    torch.testing.assert_close(make_canonical(twice).dense(), factor.dense())
    opposed = LowRank(
        torch.cat([factor.a, factor.a[:2]]), torch.cat([factor.b, -factor.b[:, :2]], 1)
    )
    assert make_canonical(opposed).rank == 4


def test_rank_that_is_small_stays() -> None:
    a, b = torch.eye(3, 9), torch.eye(9, 3) * torch.tensor([1, 1e-6, 1e-11])
    assert make_canonical(LowRank(a, b)).rank == 3
    assert make_canonical(LowRank(a, b * torch.tensor([1, 1, 1e-6]))).rank == 2


def test_a_delta_of_zero_keeps_one_rank() -> None:
    factor = make_canonical(LowRank(torch.randn(3, 5), torch.zeros(4, 3)))
    assert factor.rank == 1
    assert not factor.dense().any()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
def test_compress_is_eckart_youngs_best(out: int, in_: int, rank: int, dense: bool) -> None:
    factor = factors(out, in_, rank)
    change = factor.dense() if dense else factor
    for wanted in (1, 3, 100):
        small, kept = compress(change, rank=wanted)
        want = best(exact(factor), wanted)
        torch.testing.assert_close(exact(small), want, rtol=0, atol=4e-7 * want.norm().item())
        assert kept == pytest.approx(
            (want.square().sum() / exact(factor).square().sum()).item(), rel=1e-6
        )
        assert small.rank == min(wanted, out, in_, rank) or (dense and wanted == 100)


def test_dense_deltas_lose_no_small_singular_value_of_float32() -> None:
    """The Gram matrix squares singular values: 1e-6 of the largest must survive that."""
    g = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(n, 24, dtype=torch.float64, generator=g))[0] for n in (48, 96)
    )
    delta = ((u * torch.logspace(0, -6, 24, dtype=torch.float64)) @ v.t()).float()
    for change in (delta, delta.t()):
        small, _ = compress(change, rank=16)
        least = (change.double() - best(change, 16)).norm()
        assert (change.double() - exact(small)).norm() <= least * (1 + 1e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_energy_takes_the_least_rank_that_holds_it(dense: bool) -> None:
    values = torch.tensor([4.0, 2, 2, 1])
    factor = LowRank(torch.eye(4, 10), torch.eye(8, 4) * values)
    change = factor.dense() if dense else factor
    shares = values.square().cumsum(0) / values.square().sum()
    for energy, rank in (
        (0.5, 1),
        (0.64, 1),
        (0.65, 2),
        (0.79, 2),
        (0.9, 3),
        (0.96, 3),
        (0.97, 4),
        (1.0, 4),
        (1e-9, 1),
    ):
        small, kept = compress(change, energy=energy)
        assert small.rank == rank
        assert kept == pytest.approx(shares[rank - 1].item())
    assert compress(change, energy=0.97, rank=2)[0].rank == 2
    assert compress(change, energy=0.5, rank=3)[0].rank == 1


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": -1}, {"energy": 0.0}, {"energy": 1.5}, {"energy": float("nan")}],
)
def test_a_rank_or_energy_that_is_none_is_refused(options: dict[str, float]) -> None:
    for change in (factors(), factors().dense()):
        with pytest.raises(ExpertError, match="is wanted"):
            compress(change, **options)  # type: ignore[arg-type]


def test_compressing_nothing_away_keeps_all() -> None:
    small, kept = compress(factors())
    assert kept == 1
    torch.testing.assert_close(small.dense(), factors().dense())


def test_energy_of_factors_is_that_of_their_product() -> None:
    factor = factors()
    assert energy_of(factor) == pytest.approx(exact(factor).square().sum().item(), rel=1e-12)
    assert energy_of(factor.dense()) == pytest.approx(energy_of(factor), rel=1e-6)
    assert energy_of(LowRank(torch.zeros(0, 3), torch.zeros(4, 0))) == 0


def test_an_experts_factors_each() -> None:
    expert = Expert("e", {"up": factors(), "down": factors(20, 30, 2)})
    assert {m: f.rank for m, f in make_canonical_expert(expert, rank=4).factors.items()} == {
        "up": 4,
        "down": 2,
    }
    assert make_canonical_expert(expert).digest == make_canonical_expert(expert).digest
    torch.testing.assert_close(
        make_canonical_expert(expert).factors["up"].dense(), expert.factors["up"].dense()
    )
