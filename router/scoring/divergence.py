"""How two models' next-token distributions differ, from their logits over the vocabulary.

All functions take finite logits [..., V] (or log-probabilities, which are logits too), count in
nats, compute in float32, and return one number for each position, [...]. For logits that do not fit
in memory twice, call them for a few positions at a time.
"""

import math

from torch import Tensor

_FAR = 80.0  # e^80 is still a float32, and e^-80 of a probability is nothing


def js(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of p and q, in [0, ln 2].

    It is H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991), computed token by token as (p log(p / m) +
    q log(q / m)) / 2 with m = (p + q) / 2 and, for d = log q - log p, log(m / p) = log1p(expm1(d) /
    2): a difference of entropies would be noise for distributions that are nearly equal, and this
    is exactly 0 for equal ones.
    """
    log_p = p.float().log_softmax(-1)
    log_q = q.float().log_softmax(-1)
    d = (log_q - log_p).clamp_(-_FAR, _FAR)
    of_p = log_p.exp_().mul_(d.expm1().div_(2).log1p_())
    of_q = log_q.exp_().mul_(d.neg_().expm1_().div_(2).log1p_())
    return of_p.add_(of_q).sum(-1).div_(-2).clamp_(0, math.log(2))


def entropy(logits: Tensor) -> Tensor:
    """Return H(p) = -sum p log p."""
    log_p = logits.float().log_softmax(-1)
    return log_p.exp().mul_(log_p).sum(-1).neg_()


def nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p(token).

    Args:
        logits: [..., V].
        tokens: [...], the id of the token that followed each position.
    """
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).neg_()


def to_bits(nats: Tensor) -> Tensor:
    """Turn nats into bits."""
    return nats / math.log(2)
