"""Divergences against a slow reference in float64, and their identities."""

import math

import pytest
import torch
from torch import Tensor

from router.scoring.divergence import entropy, js, nll, to_bits


def draw_logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(5, 97, generator=torch.Generator().manual_seed(seed))


def slow_entropy(p: list[float]) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def slow_js(p: list[float], q: list[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return slow_entropy(middle) - (slow_entropy(p) + slow_entropy(q)) / 2


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_they_equal_a_slow_reference(scale: float) -> None:
    p, q, tokens = draw_logits(0, scale), draw_logits(1, scale), torch.tensor([3, 0, 96, 50, 7])
    exact_p, exact_q = p.double().softmax(-1), q.double().softmax(-1)
    expected_js = [slow_js(a, b) for a, b in zip(exact_p.tolist(), exact_q.tolist(), strict=True)]
    expected_entropy = [slow_entropy(a) for a in exact_p.tolist()]
    expected_nll = [-math.log(a[t]) for a, t in zip(exact_p.tolist(), tokens.tolist(), strict=True)]
    torch.testing.assert_close(js(p, q), torch.tensor(expected_js), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(entropy(p), torch.tensor(expected_entropy), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(nll(p, tokens), torch.tensor(expected_nll), rtol=1e-4, atol=1e-5)


def test_js_is_symmetric_zero_for_equals_alone_and_at_most_ln_2() -> None:
    p, q = draw_logits(0), draw_logits(1)
    torch.testing.assert_close(js(p, q), js(q, p))
    assert (js(p, p) == 0).all()
    assert (js(p, p + 5) < 1e-6).all()
    assert (js(p, q) > 0).all()
    apart = torch.tensor([[1e4, 0.0], [40.0, 0.0]]), torch.tensor([[0.0, 1e4], [0.0, 40.0]])
    torch.testing.assert_close(js(*apart), torch.full((2,), math.log(2)))
    assert (to_bits(js(*apart)) <= 1).all()


def test_a_tiny_difference_is_measured_and_not_noise() -> None:
    p, step = torch.zeros(1, 4), torch.tensor([[1e-3, -1e-3, 1e-3, -1e-3]])
    assert js(p, p + step).item() == pytest.approx(1e-6 / 8, rel=1e-2)  # sum p d^2 / 8


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    p, q, order = (
        draw_logits(0),
        draw_logits(1),
        torch.randperm(97, generator=torch.Generator().manual_seed(2)),
    )
    torch.testing.assert_close(js(p[:, order], q[:, order]), js(p, q))
    torch.testing.assert_close(entropy(p[:, order]), entropy(p))


def test_logits_of_half_precision_are_counted_in_float32() -> None:
    p, q = draw_logits(0).bfloat16(), draw_logits(1).bfloat16()
    assert js(p, q).dtype == torch.float32
    torch.testing.assert_close(js(p, q), js(p.float(), q.float()))
