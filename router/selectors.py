"""The policies that others may ask for a shortlist, and how any policy is found by name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from router.activations import ActivationNormPolicy, SubspacePolicy
from router.gate import GatePolicy
from router.policy import Context, Policy, RouterError, Selector
from router.retrieval import RetrievalPolicy

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

SELECTORS: dict[str, type[Selector]] = {
    "retrieval": RetrievalPolicy,
    "gate": GatePolicy,
    "activation_norm": ActivationNormPolicy,
    "subspace": SubspacePolicy,
}


async def create_selector(kind: str, options: Mapping[str, Any], context: Context) -> Selector:
    """Raises RouterError for an unknown kind or option, or if the context lacks what it needs."""
    selector = find(SELECTORS, kind, "selector")
    return await selector.create(checked(selector, kind, options), context)


def find(table: Mapping[str, type[AnyPolicy]], kind: str, what: str) -> type[AnyPolicy]:
    """Raises RouterError with the names that exist."""
    if kind not in table:
        raise RouterError(f"unknown {what} {kind!r}; there are: {', '.join(table)}")
    return table[kind]


def checked(policy: type[Policy], kind: str, options: Mapping[str, Any]) -> Any:
    """The typed options of a policy. Raises RouterError naming the key at fault."""
    try:
        return policy.Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "options"
        known = ", ".join(policy.Options.model_fields)
        raise RouterError(f"policy type {kind!r}: {place}: {first['msg']} (known options: {known})") from None
