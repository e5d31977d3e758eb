"""The policies there are, and how one is made from a config."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from router.policy import Context, Policy, RouterError
from router.retrieval import RetrievalPolicy
from router.static import StaticPolicy

POLICIES: dict[str, type[Policy]] = {
    "static": StaticPolicy,
    "retrieval": RetrievalPolicy,
}


def policy_class(kind: str) -> type[Policy]:
    """Raises RouterError with the names that exist."""
    if kind not in POLICIES:
        raise RouterError(f"unknown policy type {kind!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[kind]


def check_options(kind: str, options: Mapping[str, Any]) -> Any:
    """The typed options of a policy. Raises RouterError naming the key at fault."""
    cls = policy_class(kind)
    try:
        return cls.Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(cls.Options.model_fields)
        place = ".".join(map(str, first["loc"]))
        raise RouterError(f"policy type {kind!r}: {place}: {first['msg']} (known options: {known})") from None


async def create_policy(kind: str, options: Mapping[str, Any], context: Context) -> Policy:
    return await policy_class(kind).create(check_options(kind, options), context)
