"""Averages: sums of the experts' deltas, and points between the experts and the base."""

import math
from typing import Annotated

import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.merge.method import CountOrZero, Method, Rule

Cosine = Annotated[float, Rule("from -1 to 1", lambda v: -1 <= v <= 1)]


def linear(weights: Tensor) -> Tensor:
    """Weight average: delta = sum_k w_k delta_k, sum_k w_k = 1.

    That is the average of the fine-tuned weights themselves. Model soups (arXiv 2203.05482): all
    weights equal, which is the default.

    Args:
        weights: [experts].

    Returns the coefficients w, [experts]. One expert comes out as it went in.
    """
    return weights


def task_arithmetic(weights: Tensor) -> Tensor:
    """Task arithmetic: delta = sum_k w_k delta_k.

    Args:
        weights: [experts], the scaling coefficients; 0.3 by default, what the paper (arXiv
            2212.04089) found near the best for sums of experts. A single expert is thus scaled too.

    Returns the coefficients w, [experts].
    """
    return weights


def cat(weights: Tensor) -> Tensor:
    """LoRA soups by concatenation: delta = sum_k w_k b_k a_k.

    As factors that is [w_1 b_1 | ... | w_K b_K] and [a_1; ...; a_K]. The paper (arXiv 2410.13025)
    learns w on data, one for each layer; here they are given, 1 by default as in PEFT's `cat`. It
    is the sum of task arithmetic, since any expert's factors are kept exactly.

    Args:
        weights: [experts].

    Returns the coefficients w, [experts].
    """
    return weights


def lines(
    weights: Tensor, *, beta: float, alpha: float = 1.0, layer: int | None, layers: int
) -> Tensor:
    """LiNeS: the average, scaled with depth.

        c_k = w_k (alpha + beta l / (L - 1))    in layer l of L
        c_k = w_k alpha                         outside of the layers

    Without a base L is one more than the last layer touched. The paper (arXiv 2410.17146) scales
    the sum of N experts by 1 / N + beta' l / (L - 1), which is alpha = 1, the default, and beta =
    N beta'; it searches beta' in [0, 1] on validation data, hence beta has no default. For a single
    expert it takes beta = 1 - alpha, and with alpha = 1 that gives the expert as it was. To scale
    another merge, merge that alone by `lines`.

    Args:
        weights: [experts], sum 1.

    Returns the coefficients c, [experts].
    """
    depth = 0.0 if layer is None else layer / max(layers - 1, 1)
    return weights * (alpha + beta * depth)


def layer_swap(  # noqa: PLR0913 - one knob each, and where the weight is
    weights: Tensor,
    *,
    bottom: CountOrZero,
    top: CountOrZero,
    transition: CountOrZero = 0,
    layer: int | None,
    layers: int,
) -> Tensor:
    """Layer swapping: the first expert, with decoder layers of the second one in place of its own.

    c = (0, 1) in the swapped layers, c = w in the `transition` layers next to them and outside of
    the layers, else c = (1, 0). The paper (arXiv 2410.01335) swaps layers of a language's expert
    into one for mathematics, with transition layers averaged. How many were swapped could not be
    read, so both numbers must be given; that embeddings and head are averaged too is our choice.

    Args:
        weights: [2], sum 1.
        bottom: How many of the lowest layers are swapped.
        top: How many of the highest layers are swapped.
        transition: How many layers next to those are averaged.

    Returns the coefficients c, [2]. Raises MergeError if more are to be swapped than there are.
    """
    if bottom + top > layers:
        raise MergeError(
            f"layer_swap: {bottom} layers at the bottom and {top} at the top, but there are"
            f" {layers}"
        )
    if layer is None:
        return weights

    swapped = [*range(bottom), *range(layers - top, layers)]
    if layer in swapped:
        return torch.tensor([0.0, 1.0])
    near = any(abs(layer - other) <= transition for other in swapped)
    return weights if near else torch.tensor([1.0, 0.0])


def slerp(deltas: Tensor, weights: Tensor, *, parallel: Cosine = 0.9995, base: Tensor) -> Tensor:
    """SLERP: spherical interpolation of two experts' weights a and b at the angle O between them.

        sin((1 - t) O) / sin(O) a + sin(t O) / sin(O) b,    t = w_2 / (w_1 + w_2)
        (1 - t) a + t b                                     where |cos O| > parallel

    As in the field each weight is one vector, and experts of one base are mostly parallel by the
    usual bound of 0.9995, which is the default; 1 interpolates on the sphere at any angle.
    Shoemake, Animating rotation with quaternion curves, 1985.

    Args:
        deltas: [2, *shape].
        weights: [2], sum 1.
        base: [*shape].

    Returns [*shape], the interpolated weight less the base.
    """
    a, b = (base.double().add_(delta).flatten() for delta in deltas)
    cosine = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300))
    t = float(weights[1])
    if abs(cosine) > parallel or abs(cosine) >= 1:
        first = 1 - t
        second = t
    else:
        angle = math.acos(cosine)
        first = math.sin((1 - t) * angle) / math.sin(angle)
        second = math.sin(t * angle) / math.sin(angle)
    return deltas[0].mul_(first).add_(deltas[1], alpha=second).add_(base, alpha=first + second - 1)


def model_stock(deltas: Tensor, weights: Tensor) -> Tensor:
    """Model Stock: an estimate of the centre that the experts lie around.

    It lies on the line from the base to their mean: delta = t mean_k delta_k, t = K cos / (1 + (K -
    1) cos), cos the mean cosine of two deltas. arXiv 2403.19522, for each weight by itself. Where
    cos is negative, which the paper does not treat, t is 0, the base. An expert that leaves the
    weight alone has cosine 0.

    Args:
        deltas: [experts, *shape].
        weights: Not used, the experts count alike.

    Returns [*shape]; of equal experts one of them.
    """
    flat = deltas.flatten(1)
    products = flat @ flat.t()
    norms = products.diagonal().sqrt()
    cosines = products / torch.outer(norms, norms).clamp_min_(torch.finfo(norms.dtype).tiny)
    count = len(flat)
    cosine = max(0.0, float(cosines.sum() - cosines.trace()) / (count * (count - 1)))
    return deltas.mean(0).mul_(count * cosine / (1 + (count - 1) * cosine))


ROWS = (
    Method("linear", linear, "Model soups, arXiv 2203.05482"),
    Method(
        "task_arithmetic",
        task_arithmetic,
        "Task arithmetic, arXiv 2212.04089",
        weights="sum",
        weight=0.3,
    ),
    Method("cat", cat, "LoRA soups, arXiv 2410.13025", weights="sum"),
    Method("lines", lines, "LiNeS, arXiv 2410.17146"),
    Method("layer_swap", layer_swap, "Layer swapping, arXiv 2410.01335", at_least=2, at_most=2),
    Method("slerp", slerp, "Shoemake 1985", at_least=2, at_most=2),
    Method("model_stock", model_stock, "Model Stock, arXiv 2403.19522", weights="none", at_least=2),
)
