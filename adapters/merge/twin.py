"""Twin-Merging (arXiv 2406.15479): one shared expert, and what each expert knows beyond it."""

from collections.abc import Mapping

from adapters.deltas import Deltas
from adapters.merge.merged import check_one_base, merge_experts
from adapters.merge.registry import METHODS


def build_twins(
    experts: Mapping[str, Deltas], shared_weight: float = 0.3, method: str = "task_arithmetic"
) -> tuple[Deltas, dict[str, Deltas]]:
    """Return the shared expert s and the exclusive knowledge v_k of each expert, by its name.

        s = lambda merge(delta_1, ..., delta_N), for task arithmetic lambda sum_k delta_k
        v_k = delta_k - s

    Both are computed when a weight is asked for. A request is served by s + sum_k w_k v_k, which is
    s for w = 0, and expert k for w_k = 1 alone: exactly until the v_k are compressed, of which the
    paper keeps the best of a low rank. Where all experts are known by their factors so
    are s and v_k, with all ranks added up.

    Args:
        experts: The deltas of each expert by its name.
        shared_weight: Lambda, 0.3 in the authors' code for language models.
        method: Any static merge that needs nothing but the experts, each with weight 1.

    Raises MergeError as `merge_experts` does, and names experts that do not change one base.
    """
    check_one_base(experts)
    unweighted = method in METHODS and METHODS[method].weights == "none"
    weights = None if unweighted else [1.0] * len(experts)
    whole = merge_experts(method, list(experts.values()), weights)
    shared = merge_experts("task_arithmetic", [whole], [shared_weight])
    return shared, {
        name: merge_experts("task_arithmetic", [expert, shared], [1.0, -1.0])
        for name, expert in experts.items()
    }
