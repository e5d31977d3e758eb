"""The bank for the CPU gives what the dense bank gives."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adapters.bank.bank import build_bank
from adapters.expert import LowRank
from tta_serve.engine.worker.cpu.sparse_bank import ExpertUses, SparseBank, narrow_factor

Weights = Sequence[Sequence[LowRank | None]]

INPUTS, OUTS = 50, (60, 7, 700)
COLUMNS = (4, 0, 2)


def factor(rank: int, out: int, seed: int) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, INPUTS, generator=g).half(), torch.randn(out, rank, generator=g).half()
    )


def layer() -> Weights:
    """Return three weights and three experts, of all kinds.

    There are ranks that fill no tile, and weights left alone by some, or by all.
    """
    return (
        (factor(8, 60, 0), None, factor(3, 60, 1)),
        (None, None, None),
        (factor(5, 700, 2), factor(1, 700, 3), None),
    )


def widened(weights: Weights) -> Weights:
    return [[f and LowRank(f.a.float(), f.b.float()) for f in factors] for factors in weights]


def dense(weights: Weights, y: Tensor, x: Tensor, table: Tensor) -> Tensor:
    bank = build_bank(widened(weights), OUTS)
    assert bank is not None
    return bank.add_(y.clone(), x, table[:, COLUMNS][:, bank.expert])


def some_coefficients(tokens: int) -> Tensor:
    g = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, 6, generator=g) * (torch.rand(tokens, 6, generator=g) < 0.5)


@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 65, 200])
@pytest.mark.parametrize("keep", ["float16", "float32"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_gives_every_token_what_the_dense_bank_gives(
    tokens: int, keep: str, threads: int
) -> None:
    weights = layer() if keep == "float16" else widened(layer())
    x, y, table = (
        torch.randn(tokens, INPUTS),
        torch.randn(tokens, sum(OUTS)),
        some_coefficients(tokens),
    )
    bank = SparseBank(weights, OUTS, COLUMNS)
    got = bank.add_(y.clone(), x, ExpertUses(table, bank.rows + 9, threads))
    torch.testing.assert_close(got, dense(weights, y, x, table), rtol=1e-5, atol=1e-4)


def test_one_factor_in_float32_widens_the_others() -> None:
    weights = [list(factors) for factors in layer()]
    weights[2][1] = LowRank(torch.randn(1, INPUTS), torch.randn(700, 1))
    x, table = torch.randn(9, INPUTS), some_coefficients(9)
    bank = SparseBank(weights, OUTS, COLUMNS)
    got = bank.add_(torch.zeros(9, sum(OUTS)), x, ExpertUses(table, bank.rows, 2))
    torch.testing.assert_close(
        got, dense(weights, torch.zeros(9, sum(OUTS)), x, table), rtol=1e-5, atol=1e-4
    )


def test_tensors_that_lie_apart_in_memory() -> None:
    wide, table = torch.zeros(9, sum(OUTS) + 5), some_coefficients(9)
    x, y = torch.randn(INPUTS, 9).t(), wide[:, 2:-3]
    bank = SparseBank(layer(), OUTS, COLUMNS)
    bank.add_(y, x, ExpertUses(table, bank.rows, 2))
    torch.testing.assert_close(
        y, dense(layer(), torch.zeros(9, sum(OUTS)), x, table), rtol=1e-5, atol=1e-4
    )
    assert not wide[:, :2].any()
    assert not wide[:, -3:].any()


def test_a_token_without_coefficients_keeps_its_bits() -> None:
    table = some_coefficients(9)
    table[4] = 0
    y = torch.randn(9, sum(OUTS))
    bank = SparseBank(layer(), OUTS, COLUMNS)
    got = bank.add_(y.clone(), torch.randn(9, INPUTS), ExpertUses(table, bank.rows, 2))
    assert torch.equal(got[4], y[4])


def test_what_is_no_number_stays_with_its_token() -> None:
    x, table = torch.randn(9, INPUTS), torch.ones(9, 6)
    x[3, 7] = torch.inf
    bank = SparseBank(layer(), OUTS, COLUMNS)
    got = bank.add_(torch.zeros(9, sum(OUTS)), x, ExpertUses(table, bank.rows, 2))
    broken = ~got.isfinite().all(1)
    assert broken.tolist() == [n == 3 for n in range(9)]


def test_factors_are_narrowed_only_where_nothing_is_lost() -> None:
    assert narrow_factor(torch.tensor([0.5, -3.0])).dtype == torch.float16
    for lost in (0.1, 1e6, 1e-9):
        assert torch.equal(narrow_factor(torch.tensor([0.5, lost])), torch.tensor([0.5, lost]))
    assert narrow_factor(torch.tensor([0.5, 0.1])).dtype == torch.float32
