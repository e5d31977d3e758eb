"""The bank against the dense merge it stands for."""

import torch

from adapters.bank import Bank, fuse, stack
from adapters.expert import LowRank


def factor(rank: int, out: int, in_: int, seed: int) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, in_, generator=g), torch.randn(out, rank, generator=g))


def rows(bank: Bank, coefficients: torch.Tensor) -> torch.Tensor:
    return coefficients[:, list(bank.expert)]


def test_every_token_gets_its_own_dense_merge_of_mixed_ranks() -> None:
    factors = [factor(8, 12, 10, 0), None, factor(3, 12, 10, 1), factor(1, 12, 10, 2)]
    bank = stack(factors)
    assert bank is not None
    x, c = torch.randn(5, 10), torch.randn(5, 4)
    y = torch.zeros(5, 12)
    bank.to(torch.device("cpu"), torch.float32).add_(y, x, rows(bank, c))
    for token in range(5):
        dense = sum(c[token, k] * f.dense() for k, f in enumerate(factors) if f is not None)
        torch.testing.assert_close(y[token], dense @ x[token], rtol=1e-4, atol=1e-5)


def test_a_fused_bank_fills_each_slice_of_the_output() -> None:
    q, k, v = stack([factor(2, 6, 10, 0), factor(4, 6, 10, 1)]), None, stack([None, factor(3, 2, 10, 2)])
    bank = fuse([q, k, v], [6, 2, 2])
    assert q is not None
    assert v is not None
    assert bank is not None
    x, c = torch.randn(5, 10), torch.randn(5, 2)
    y = bank.add_(torch.zeros(5, 10), x, rows(bank, c))
    torch.testing.assert_close(y[:, :6], q.add_(torch.zeros(5, 6), x, rows(q, c)))
    torch.testing.assert_close(y[:, 6:8], torch.zeros(5, 2))
    torch.testing.assert_close(y[:, 8:], v.add_(torch.zeros(5, 2), x, rows(v, c)))


def test_a_zero_coefficient_changes_nothing_at_all() -> None:
    bank = stack([factor(8, 12, 10, 0)])
    assert bank is not None
    y = torch.randn(5, 12)
    assert torch.equal(bank.add_(y.clone(), torch.randn(5, 10), torch.zeros(5, 8)), y)


def test_nothing_to_stack_is_no_bank() -> None:
    assert stack([None, None]) is None
    assert fuse([None, None], [3, 4]) is None
