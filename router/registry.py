"""All policies by name, and how one is made from a config."""

from collections.abc import Mapping
from typing import Any

from router.policies.dawin import DawinPolicy
from router.policies.pareto import ParetoPolicy
from router.policies.prompt_nll import PromptNllPolicy
from router.policies.random_control import RandomPolicy
from router.policies.recombined import RecombinedPolicy
from router.policies.selectors import SELECTORS, find_policy, read_options
from router.policies.static import LearnedStaticPolicy, StaticPolicy
from router.policies.t3 import T3Policy
from router.policies.t3_batch import T3BatchPolicy
from router.policies.token_gated import GatedPolicy
from router.policies.twin import TwinPolicy
from router.policy import Context, Policy

POLICIES: dict[str, type[Policy]] = {
    "static": StaticPolicy,
    **SELECTORS,
    "twin": TwinPolicy,
    "gated": GatedPolicy,
    "prompt_nll": PromptNllPolicy,
    "t3": T3Policy,
    "t3_batch": T3BatchPolicy,
    "dawin": DawinPolicy,
    "learned_static": LearnedStaticPolicy,
    "pareto": ParetoPolicy,
    "recombined": RecombinedPolicy,
    "random_control": RandomPolicy,
}
"""The class of each policy, by its `type` in the config."""


def find_policy_class(kind: str) -> type[Policy]:
    """Return the class of a policy.

    Raises:
        RouterError: There is none of that name; the message lists those there are.
    """
    return find_policy(POLICIES, kind, "policy type")


def check_options(kind: str, options: Mapping[str, Any]) -> Any:
    """Return the typed options of a policy.

    Raises:
        RouterError: The policy or one of its options does not exist, or has a wrong value.
    """
    return read_options(find_policy_class(kind), kind, options)


def find_forms(kind: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Return the forms of the experts that a policy can choose, and its selector if it has one.

    Raises:
        RouterError: As `check_options`.
    """
    selector = getattr(check_options(kind, options), "selector", None)
    own = find_policy_class(kind).forms
    return own & SELECTORS[selector].forms if selector in SELECTORS else own


async def create_policy(kind: str, options: Mapping[str, Any], context: Context) -> Policy:
    """Build a policy of a config's words.

    Args:
        kind: Its name in `POLICIES`.
        options: As the config gives them.
        context: The library and the engine's probe.

    Raises:
        RouterError: The options are wrong, or the context lacks what the policy needs.
    """
    return await find_policy_class(kind).create(check_options(kind, options), context)
