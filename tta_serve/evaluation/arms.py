"""Who answers: the base, experts, merges, entries and policies; and the configs under which they are served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.coefficient import Json
from tta_serve.config import ConfigError, PolicyConfig, ServeConfig

Kind = Literal["base", "oracle", "expert", "static", "learned", "control", "policy"]
MERGE = "merge-"
_KINDS: Mapping[str, Kind] = {
    "static": "static",
    "learned_static": "learned",
    "pareto": "learned",
    "random_control": "control",
}
_CONTROLS = {
    "random_control": PolicyConfig(type="random_control"),
    "uniform": PolicyConfig(type="static", options={"uniform": True}),
}


@dataclass(frozen=True)
class Asked:
    """How an answer is asked for: the request's `model`, and its `merge` as JSON, or nothing. Equal ones get equal answers."""

    model: str
    merge: str = ""

    @classmethod
    def of(cls, model: str, **merge: Any) -> Asked:
        return cls(model, json.dumps(merge, sort_keys=True))

    @property
    def extra(self) -> dict[str, Any]:
        """What the request says beside OpenAI's own fields."""
        return {"merge": json.loads(self.merge)} if self.merge else {}

    @property
    def experts(self) -> dict[str, Json]:
        """The mix that is named, a pin under its own name; none for the base."""
        pin = self.model.partition(":")[2]
        if pin:
            return {} if pin == "base" else {pin: 1.0}
        found: dict[str, Json] = json.loads(self.merge)["experts"]
        return found


@dataclass(frozen=True)
class Arm:
    """One that is compared.

    kind: base   oracle: the right expert pinned, half of each for two skills   expert: one for everybody
    static: a mix or merge for everybody, not learned   learned: one that is   control: by chance   policy: by the prompt
    pinned: how it is asked whatever the prompt; None for the oracle, and for policies of all kinds, who are asked what they do
    inline: whether it decides in the pass that answers   gated: whether it mixes by the token, which no pinned mix can say
    """

    name: str
    kind: Kind
    pinned: Asked | None = None
    inline: bool = False
    gated: bool = False

    @property
    def decides(self) -> bool:
        """Whether it is a policy of the server."""
        return self.pinned is None and self.kind != "oracle"


@dataclass(frozen=True)
class Names:
    """served: the model's name   most: experts that a request may name itself"""

    served: str
    most: int

    @property
    def base(self) -> Asked:
        return self.pin("base")

    def pin(self, name: str) -> Asked:
        return Asked(f"{self.served}:{name}")

    def mix(self, experts: Mapping[str, Json], policy: str = "") -> Asked:
        """A mix by its coefficients; one of more experts than a request may name, by the policy that it is of."""
        if not experts:
            return self.base
        if len(experts) > self.most:
            return Asked.of(self.served, policy=policy)
        return Asked.of(self.served, experts=dict(experts))

    def oracle(self, tasks: Sequence[str]) -> Asked:
        return self.mix({name: 1.0 / len(tasks) for name in tasks})


def names_of(config: ServeConfig) -> Names:
    return Names(config.model.id, config.mix.max_experts)


def with_controls(config: ServeConfig) -> ServeConfig:
    """The config, and a random and a uniform policy if it has none such."""
    policies = dict(config.policies)
    for name, control in _CONTROLS.items():
        if not any((p.type, p.options) == (control.type, control.options) for p in policies.values()):
            policies.setdefault(name, control)
    return config.model_copy(update={"policies": policies})


def merges_only(config: ServeConfig, library: Path, experts: int, ranks: int) -> ServeConfig:
    """The config on a library with merges in it, without entries and without any policy but the base.

    experts, ranks: what capacity must have room for
    """
    room = config.library.capacity
    capacity = replace(room, experts=max(room.experts, experts), ranks=max(room.ranks, ranks))
    section = config.library.model_copy(update={"path": library, "capacity": capacity, "entries": {}})
    policies = {"base": config.policies["base"]}
    return config.model_copy(update={"library": section, "policies": policies, "default_policy": "base"})


def arms_of(config: ServeConfig, experts: Iterable[str], entries: Iterable[str]) -> list[Arm]:
    """All but the merges. entries: names of those that are served"""
    names, by_hand = names_of(config), config.library.entries
    own = [Arm(f"expert {name}", "expert", names.mix({name: 1.0})) for name in sorted(experts)]
    pins = [Arm(f"entry {name}", "static" if name in by_hand else "learned", names.pin(name)) for name in entries]
    policies = [_policy(name, p) for name, p in config.policies.items() if name != "base"]
    return [Arm("base", "base", names.base), Arm("oracle", "oracle"), *own, *pins, *policies]


def _policy(name: str, policy: PolicyConfig) -> Arm:
    return Arm(name, _KINDS.get(policy.type, "policy"), inline=policy.inline, gated=policy.type == "gated")


def merge_arms(config: ServeConfig, methods: Iterable[str]) -> list[Arm]:
    names = names_of(config)
    return [Arm(f"merge {method}", "static", names.pin(f"{MERGE}{method}")) for method in methods]


def chosen(arms: Sequence[Arm], wanted: Sequence[str]) -> list[Arm]:
    """The arms of these names or kinds, all if there are none; always base and oracle, which the others are measured by."""
    return [arm for arm in arms if not wanted or arm.kind in ("base", "oracle") or {arm.name, arm.kind} & set(wanted)]


def check(arms: Sequence[Arm], wanted: Sequence[str]) -> None:
    """Raises ConfigError for a wanted name that no arm has, and for one that two have."""
    names = [arm.name for arm in arms]
    if double := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"a policy must not be called as what it is compared with: rename {', '.join(sorted(double))}")
    known = {*names, *get_args(Kind)}
    if unknown := set(wanted) - known:
        raise ConfigError(f"there is no arm {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
