"""The policies that others may ask for a shortlist, and how any policy is looked up by name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from router.errors import RouterError
from router.policies.activations import ActivationNormPolicy, SubspacePolicy
from router.policies.gate import GatePolicy
from router.policies.retrieval import RetrievalPolicy
from router.policies.selector import Selector
from router.policy import Context, Policy

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

SELECTORS: dict[str, type[Selector]] = {
    "retrieval": RetrievalPolicy,
    "gate": GatePolicy,
    "activation_norm": ActivationNormPolicy,
    "subspace": SubspacePolicy,
}
"""The class of each selector, by name."""


async def create_selector(kind: str, options: Mapping[str, Any], context: Context) -> Selector:
    """Build a selector.

    Raises:
        RouterError: The kind or an option is unknown, or the context lacks what the selector needs.
    """
    selector = find_policy(SELECTORS, kind, "selector")
    return await selector.create(read_options(selector, kind, options), context)


def check_selector(kind: str, options: Mapping[str, Any]) -> None:
    """Check that there is a selector, and that these are options of it.

    Raises:
        RouterError: The kind or an option is unknown.
    """
    read_options(find_policy(SELECTORS, kind, "selector"), kind, options)


def find_policy(table: Mapping[str, type[AnyPolicy]], kind: str, what: str) -> type[AnyPolicy]:
    """Return a policy of a table.

    Args:
        table: Classes by name.
        kind: The name to look up.
        what: What the table has, for the message.

    Raises:
        RouterError: The name is not there; the message lists those that are.
    """
    if kind not in table:
        raise RouterError(f"unknown {what} {kind!r}; there are: {', '.join(table)}")
    return table[kind]


def read_options(policy: type[Policy], kind: str, options: Mapping[str, Any]) -> Any:
    """Return the typed options of a policy.

    Raises:
        RouterError: An option is unknown or wrong; the message names it.
    """
    try:
        return policy.Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "options"
        known = ", ".join(policy.Options.model_fields)
        raise RouterError(
            f"policy type {kind!r}: {place}: {first['msg']} (known options: {known})"
        ) from None
