"""The policies there are, and how one is made from a config."""

from collections.abc import Mapping
from typing import Any

from router.dawin import DawinPolicy
from router.gated import GatedPolicy
from router.pareto import ParetoPolicy
from router.policy import Context, Policy
from router.prompt_nll import PromptNllPolicy
from router.random_control import RandomPolicy
from router.selectors import SELECTORS, checked, find
from router.static import LearnedStaticPolicy, StaticPolicy
from router.t3 import T3Policy
from router.t3_batch import T3BatchPolicy

POLICIES: dict[str, type[Policy]] = {
    "static": StaticPolicy,
    **SELECTORS,
    "gated": GatedPolicy,
    "prompt_nll": PromptNllPolicy,
    "t3": T3Policy,
    "t3_batch": T3BatchPolicy,
    "dawin": DawinPolicy,
    "learned_static": LearnedStaticPolicy,
    "pareto": ParetoPolicy,
    "random_control": RandomPolicy,
}


def policy_class(kind: str) -> type[Policy]:
    """Raises RouterError with the names that exist."""
    return find(POLICIES, kind, "policy type")


def check_options(kind: str, options: Mapping[str, Any]) -> Any:
    """The typed options of a policy. Raises RouterError naming the key at fault."""
    return checked(policy_class(kind), kind, options)


async def create_policy(kind: str, options: Mapping[str, Any], context: Context) -> Policy:
    return await policy_class(kind).create(check_options(kind, options), context)
