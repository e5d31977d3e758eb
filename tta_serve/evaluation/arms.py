"""Who answers: the base, experts, merges, entries and policies.

And the configs under which they are served.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from adapters.coefficient import Json
from tta_serve.config.sections import PolicyConfig, ServeConfig
from tta_serve.evaluation.merge_variants import TunedMerge
from tta_serve.exceptions import ConfigError

Kind = Literal["base", "oracle", "expert", "static", "merge", "learned", "control", "policy"]
"""What an arm is.

base      the base model alone
oracle    the right expert pinned, one after the other where a question takes two skills
expert    one expert for everybody
static    a mix for everybody that was not learned
merge     a merge of all experts for everybody
learned   one that was
control   a choice by chance
policy    a choice by the prompt
"""
HIGHEST_SCALE = 6.0
"""The greatest coefficient that a merge may be tuned to: a mean of six becomes their sum."""
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
class MixRequest:
    """How an answer is asked for. Equal requests get equal answers."""

    model: str
    """The field `model`: the served name, with an expert or entry pinned after a colon."""
    merge: str = ""
    """The field `merge` as JSON; empty for none."""

    @classmethod
    def make(cls, model: str, **merge: Any) -> MixRequest:
        """Return a request with these fields in its `merge`."""
        return cls(model, json.dumps(merge, sort_keys=True))

    @property
    def extra(self) -> dict[str, Any]:
        """What the request says beside OpenAI's own fields."""
        return {"merge": json.loads(self.merge)} if self.merge else {}

    def list_segments(self) -> list[dict[str, Json]]:
        """List the coefficients that are named, of one mix or of several that answer in turn.

        A pin has 1, under its own name, the base none.
        """
        pin = self.model.partition(":")[2]
        if pin:
            return [{} if pin == "base" else {pin: 1.0}]
        merge = json.loads(self.merge)
        found: list[dict[str, Json]] = merge.get("segments") or [merge["experts"]]
        return found


@dataclass(frozen=True)
class EvaluatedArm:
    """One of those that are compared."""

    name: str
    kind: Kind
    pinned: MixRequest | None = None
    """How it is asked, whatever the prompt; None for the oracle, and for the server's policies,
    who are asked what they do."""
    inline: bool = False
    """Whether it decides in the pass that answers."""
    gated: bool = False
    """Whether it mixes by the token, which no pinned mix can say."""

    @property
    def decides(self) -> bool:
        """Whether it is a policy of the server, of whatever kind."""
        return self.pinned is None and self.kind != "oracle"


@dataclass(frozen=True)
class RequestFactory:
    """Makes requests for mixes of a server, one for each different mix."""

    served: str
    """The name under which the model is served."""
    most: int
    """How many experts a request may name itself."""

    @property
    def base(self) -> MixRequest:
        """The request for the base alone."""
        return self.pin("base")

    def pin(self, name: str) -> MixRequest:
        """Return the request for an expert or an entry."""
        return MixRequest(f"{self.served}:{name}")

    def mix(self, experts: Mapping[str, Json], policy: str = "") -> MixRequest:
        """Return the request for a mix.

        Args:
            experts: The coefficients; none for the base.
            policy: The policy that decided it, which is asked for in the place of a mix of more
                experts than a request may name.
        """
        if not experts:
            return self.base
        if len(experts) > self.most:
            return MixRequest.make(self.served, policy=policy)
        return MixRequest.make(self.served, experts=dict(experts))

    def answer_in_segments(self, mixes: Sequence[Mapping[str, Json]]) -> MixRequest:
        """Return the request for an answer of mixes one after the other."""
        return MixRequest.make(self.served, segments=[dict(mix) for mix in mixes])

    def ask_oracle(self, tasks: Sequence[str]) -> MixRequest:
        """Return the request for the right expert, or several in turn; for none, for the base."""
        if len(tasks) > 1:
            return self.answer_in_segments([{name: 1.0} for name in tasks])
        return self.mix(dict.fromkeys(tasks, 1.0))


def make_request_factory(config: ServeConfig) -> RequestFactory:
    """Return what makes requests for a server with this config."""
    return RequestFactory(config.model.id, config.mix.max_experts)


def add_controls(config: ServeConfig) -> ServeConfig:
    """Return the config with a random and a uniform policy, if it has none such."""
    policies = dict(config.policies)
    for name, control in _CONTROLS.items():
        if not any(
            (p.type, p.options) == (control.type, control.options) for p in policies.values()
        ):
            policies.setdefault(name, control)
    return config.model_copy(update={"policies": policies})


def reduce_to_asked(config: ServeConfig, wanted: Sequence[str]) -> ServeConfig:
    """Return the config without policies that nobody asks: they would take time at the start.

    Args:
        config: Of the server that is judged.
        wanted: Names or kinds of arms; all if empty.
    """
    if not wanted:
        return config
    arms = [_policy(name, policy) for name, policy in config.policies.items()]
    kept = {arm.name for arm in arms if {arm.name, arm.kind} & set(wanted)}
    kept |= {"base", config.default_policy}
    # A policy that is late hands over to its fallback, which may have one itself.
    while more := {config.policies[name].fallback for name in kept} - kept:
        kept |= more
    policies = {name: policy for name, policy in config.policies.items() if name in kept}
    return config.model_copy(update={"policies": policies})


def reduce_to_merges(config: ServeConfig, library: Path, experts: int, ranks: int) -> ServeConfig:
    """Return the config on a library of merges, without entries or any policy but the base.

    Args:
        config: Of the server with everything.
        library: The folder of the library with the merges.
        experts: How many experts the capacity must have room for.
        ranks: How many ranks, over all experts.
    """
    room = config.library.capacity
    capacity = replace(room, experts=max(room.experts, experts), ranks=max(room.ranks, ranks))
    mix = config.mix.model_copy(update={"maximum": max(config.mix.maximum, HIGHEST_SCALE)})
    section = config.library.model_copy(
        update={"path": library, "capacity": capacity, "entries": {}}
    )
    policies = {"base": config.policies["base"]}
    return config.model_copy(
        update={"library": section, "mix": mix, "policies": policies, "default_policy": "base"}
    )


def list_arms(
    config: ServeConfig, experts: Iterable[str], entries: Iterable[str]
) -> list[EvaluatedArm]:
    """List all arms but the merges.

    Args:
        config: Of the server, with its policies.
        experts: The names of the experts that are served.
        entries: The names of the entries that are served.
    """
    names, by_hand = make_request_factory(config), config.library.entries
    own = [
        EvaluatedArm(f"expert {name}", "expert", names.mix({name: 1.0})) for name in sorted(experts)
    ]
    pins = [
        EvaluatedArm(f"entry {name}", "static" if name in by_hand else "learned", names.pin(name))
        for name in entries
    ]
    policies = [_policy(name, p) for name, p in config.policies.items() if name != "base"]
    return [
        EvaluatedArm("base", "base", names.base),
        EvaluatedArm("oracle", "oracle"),
        *own,
        *pins,
        *policies,
    ]


def _policy(name: str, policy: PolicyConfig) -> EvaluatedArm:
    return EvaluatedArm(
        name, _KINDS.get(policy.type, "policy"), inline=policy.inline, gated=policy.type == "gated"
    )


def list_merge_arms(config: ServeConfig, merges: Iterable[TunedMerge]) -> list[EvaluatedArm]:
    """List the arms of a library of merges, one for each.

    Args:
        config: Of the server.
        merges: One of each method.
    """
    names = make_request_factory(config)
    return [
        EvaluatedArm(merge.arm, "merge", names.mix({merge.variant.expert: merge.scale}))
        for merge in merges
    ]


def choose_arms(arms: Sequence[EvaluatedArm], wanted: Sequence[str]) -> list[EvaluatedArm]:
    """Return the arms of these names or kinds, or all if none is wanted.

    Base and oracle are always among them, as the others are measured by them.
    """
    return [
        arm
        for arm in arms
        if not wanted or arm.kind in ("base", "oracle") or {arm.name, arm.kind} & set(wanted)
    ]


def check_arms(arms: Sequence[EvaluatedArm], wanted: Sequence[str]) -> None:
    """Raise ConfigError for a wanted name that no arm has, and for one that two arms have."""
    names = [arm.name for arm in arms]
    if double := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            "a policy must not be called as what it is compared with: rename"
            f" {', '.join(sorted(double))}"
        )
    known = {*names, *get_args(Kind)}
    if unknown := set(wanted) - known:
        raise ConfigError(
            f"there is no arm {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )
