"""What policies know of the experts: example prompts, requests that pinned them, or nothing yet."""

from collections.abc import Callable

from router.policies.retrieval import lacks_examples
from router.scoring.centroids import FOLDS
from tta_serve.protocol import ExpertExamples
from tta_serve.serving.experts.view import View

STEPS_FROM = 8
"""Policies are made anew when an expert has so many pinned requests, and whenever they double."""
_BETTER_FROM = 16


def find_step(count: int) -> int:
    """Return how many of the marks 8, 16, 32, 64, ... a number of requests has reached."""
    return (count // STEPS_FROM).bit_length()


def describe_sources(view: View, kept: Callable[[str], int] | None) -> list[ExpertExamples]:
    """Return what policies know of each expert that they may choose.

    Args:
        view: The experts, and what its policies were made of.
        kept: Says how many pinned requests are kept by now of a digest; None where none are.
    """
    found = []
    for name in sorted(view.catalog.rules.classes):
        prompts = len(view.examples.get(name, ()))
        used = view.pinned.get(name, 0) if lacks_examples(name, view.examples) else 0
        waiting = None if kept is None else kept(view.digests[name])
        says = _describe(f"{view.catalog.served}:{name}", prompts, used, waiting)
        found.append(ExpertExamples(expert=name, prompts=prompts, pinned=used, says=says))
    return found


def _describe(model: str, prompts: int, used: int, kept: int | None) -> str:
    """Say what is in force for an expert, and what would make it better.

    Args:
        model: The name that pins it.
        prompts: Its example prompts.
        used: The pinned requests that are in force.
        kept: Those that are kept by now, None where none are.
    """
    if prompts >= FOLDS:
        return f"{prompts} example prompts"
    both = [f"{prompts} example prompts"] * bool(prompts) + [f"{used} pinned requests"] * bool(used)
    if prompts + used >= FOLDS:
        more = f"; better from {_BETTER_FROM} pinned requests on" if used < _BETTER_FROM else ""
        return " and ".join(both) + more
    add = f"give it an examples.txt of at least {FOLDS} prompts"
    if kept is None:
        return f"{' and '.join(both) or 'nothing'}: {add}, or set library.pinned and pin it"
    so_far = f" ({kept} pinned requests so far)" if kept else ""
    return (
        f"nothing yet, so retrieval never chooses it{so_far}: send {STEPS_FROM} requests with the"
        f" model {model}, or {add}"
    )
