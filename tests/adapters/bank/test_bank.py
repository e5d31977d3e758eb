"""The bank against the dense merge it stands for."""

import torch
from torch import Tensor

from adapters.bank.bank import build_bank
from adapters.expert import LowRank
from tests.factories.deltas import make_factor


def dense(factors: list[LowRank | None], x: Tensor, c: Tensor) -> Tensor:
    """Return each token's product with its own dense merge; c: [tokens, experts]."""
    merges = [
        sum(c[t, k] * f.dense() for k, f in enumerate(factors) if f is not None)
        for t in range(len(x))
    ]
    return torch.stack([torch.as_tensor(merges[t]) @ x[t] for t in range(len(x))])


def test_every_token_gets_its_own_dense_merge_of_mixed_ranks() -> None:
    factors = [
        make_factor(8, 12, 10, 0),
        None,
        make_factor(3, 12, 10, 1),
        make_factor(1, 12, 10, 2),
    ]
    bank = build_bank([factors], [12])
    assert bank is not None
    x, c = torch.randn(5, 10), torch.randn(5, 4)
    y = bank.add_(torch.zeros(5, 12), x, c[:, bank.expert])
    torch.testing.assert_close(y, dense(factors, x, c), rtol=1e-4, atol=1e-5)


def test_each_weight_of_a_layer_fills_its_own_outputs() -> None:
    q, v = [make_factor(2, 6, 10, 0), make_factor(4, 6, 10, 1)], [None, make_factor(3, 2, 10, 2)]
    bank = build_bank([q, [None, None], v], [6, 2, 2])
    assert bank is not None
    x, c = torch.randn(5, 10), torch.randn(5, 2)
    y = bank.add_(torch.zeros(5, 10), x, c[:, bank.expert])
    torch.testing.assert_close(y[:, :6], dense([*q], x, c), rtol=1e-4, atol=1e-5)
    assert torch.equal(y[:, 6:8], torch.zeros(5, 2))
    torch.testing.assert_close(y[:, 8:], dense([*v], x, c), rtol=1e-4, atol=1e-5)


def test_a_zero_coefficient_changes_nothing_at_all() -> None:
    bank = build_bank([[make_factor(8, 12, 10, 0)]], [12])
    assert bank is not None
    y = torch.randn(5, 12)
    assert torch.equal(bank.add_(y.clone(), torch.randn(5, 10), torch.zeros(5, 8)), y)


def test_nothing_to_stack_is_no_bank() -> None:
    assert build_bank([[None, None], [None, None]], [3, 4]) is None
