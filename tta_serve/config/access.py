"""Keys, and what their tenants may use."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tta_serve.config.section import Section

UNSTATED = "unstated"
"""What stands for the licence of an expert that states none."""

Scope = Literal["infer", "feedback", "metrics", "admin"]


class KeyConfig(Section):
    """An API key, and what it may do."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, hexadecimal; `tta keys new` makes one."""
    tenant: str | None = Field(None, min_length=1)
    """Whose key it is; unset, it is a tenant of its own."""
    scopes: frozenset[Scope] = frozenset({"infer"})
    """Where it may go: answers and names of models, feedback, metrics, management."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Unset, as many as it likes."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Of prompts and answers together."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Of a prompt; a longer one is a 400. The server's bound holds, too."""
    max_answer_tokens: int | None = Field(None, ge=1)
    """Of an answer; asking for more is a 400, and for nothing this much. The server's bound holds,
    too."""
    at_once: int | None = Field(None, ge=1)
    """How many requests of it run at once, in a replica."""


class TenantConfig(Section):
    """What a tenant may use. Of all else it learns nothing."""

    experts: list[str] | None = None
    """The experts, also those that are added later; unset, all."""
    licences: list[str] | None = None
    """The licences of those experts, in the form of `library.licences`; unset, all."""
    entries: list[str] | None = None
    """The entries, of those whose experts it has; unset, all."""
    policies: list[str] | None = None
    """The policies; unset, all. The first is its default if the server's is not among them."""

    def permits(self, expert: str, licence: str | None) -> bool:
        """Return whether an expert, of that licence, is among them."""
        return (self.experts is None or expert in self.experts) and allows_licence(
            self.licences, licence
        )


def allows_licence(patterns: Sequence[str] | None, licence: str | None) -> bool:
    """Return whether a licence is one of those that patterns allow.

    Args:
        patterns: As `library.licences` has them, None for all licences.
        licence: What an expert's manifest states, None if it states nothing.
    """
    name = (licence or UNSTATED).lower()
    return patterns is None or any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


class AccessConfig(Section):
    """Who may use the server. Without keys everybody on this machine may."""

    keys: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")], KeyConfig] = {}
    """By their labels, which logs, metrics and experiments know them under."""
    tenants: dict[str, TenantConfig] = {}
    """What tenants may use; one that is not named may use everything."""
    insecure: bool = False
    """Whether to listen to other machines without asking for keys."""

    @model_validator(mode="after")
    def _keys_differ(self) -> "AccessConfig":
        known: dict[str, str] = {}
        for label, key in self.keys.items():
            if (other := known.setdefault(key.sha256, label)) != label:
                raise ValueError(f"keys.{label}: it is the same key as {other}")
        tenants = self.find_tenants()
        if unknown := self.tenants.keys() - tenants:
            raise ValueError(
                f"tenants: no key is of {', '.join(sorted(unknown))}; keys are of:"
                f" {', '.join(sorted(tenants)) or 'nobody'}"
            )
        return self

    def find_tenants(self) -> set[str]:
        """Return the tenants that keys are of."""
        return {key.tenant or label for label, key in self.keys.items()}
