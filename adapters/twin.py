"""Twin-Merging (arXiv 2406.15479): a library's experts as one shared expert and what each of them knows beyond it."""

from collections.abc import Mapping

from adapters.deltas import Deltas
from adapters.merge.driver import merged
from adapters.merge.table import METHODS


def build(
    experts: Mapping[str, Deltas], shared_weight: float = 0.3, method: str = "task_arithmetic"
) -> tuple[Deltas, dict[str, Deltas]]:
    """The shared expert s and the exclusive knowledge v_k of each expert, both lazy:

        s = lambda merge(delta_1, ..., delta_N), for task arithmetic lambda sum_k delta_k         v_k = delta_k - s

    A request is served by s + sum_k w_k v_k. With w = 0 that is s, with w_k = 1 for one k it is that expert, exactly until the
    v_k are compressed, of which the paper keeps the best of a low rank. Where all experts are known by their factors so are s
    and v_k, with all ranks added up.

    shared_weight: lambda, 0.3 in the authors' code for language models
    method: any static merge that needs nothing but the experts, each with weight 1

    Raises MergeError as `merged` does.
    """
    unweighted = method in METHODS and METHODS[method].weights == "none"
    whole = merged(method, list(experts.values()), None if unweighted else [1.0] * len(experts))
    shared = merged("task_arithmetic", [whole], [shared_weight])
    return shared, {name: merged("task_arithmetic", [expert, shared], [1.0, -1.0]) for name, expert in experts.items()}
