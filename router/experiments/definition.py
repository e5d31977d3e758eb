"""What an operator says of an experiment: whom it is for, what its arms do, and what is to be measured."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from router.policy import RouterError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Part):
    """policy: of the server's policies   weight: its part of the traffic is weight / sum of weights"""

    name: Name
    policy: str
    weight: Positive = 1.0


class Metric(_Part):
    """One that the server measures itself (`tta_serve.store.measures.BUILT_IN`), or of outcomes that users send.

    kind: `share`, a unit's mean of values in [0, 1]; `mean`, of any values; `total`, a unit's sum; `ratio`, the sum over units
    of all values divided by how many there are, with units as clusters   better: whether `higher` or `lower` values are
    """

    name: Name
    kind: Literal["share", "mean", "total", "ratio"] = "mean"
    better: Literal["higher", "lower"] = "higher"


class Guardrail(Metric):
    """tolerated: by how much an arm may be worse than the control; an arm that is surely worse than that is stopped"""

    tolerated: float = Field(ge=0, allow_inf_nan=False)


class Metrics(_Part):
    """primary: what decides"""

    primary: Metric
    secondary: tuple[Metric, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()

    @property
    def all(self) -> tuple[Metric, ...]:
        """The primary first."""
        return self.primary, *self.secondary, *self.guardrails


class Eligible(_Part):
    """Whose requests take part: all conditions that are given must hold.

    models: the model's name as it was asked for   headers: by lower-case name, the value wanted
    keys: labels of API keys, from the config's `api_keys`
    """

    models: frozenset[str] | None = None
    headers: Mapping[str, str] = {}
    keys: frozenset[str] | None = None


class Bandit(_Part):
    """Thompson sampling on the primary metric: weights are computed anew every `every_s` seconds.

    explore: the least share of traffic of every arm
    """

    explore: Share = 0.05
    every_s: Positive = 60.0


class Definition(_Part):
    """unit: who is assigned: the body's `user`, the header `x-session-id`, or every request by itself
    coverage: the share of units that take part   layer, offset: experiments of one layer divide its units among them, each
    from its offset on; nobody is in two of them   control: an arm's name; what others are compared with
    start, stop: UTC seconds since 1970, beside being started and stopped by hand
    target: units per arm at which the analysis is sharpest   alpha: its error rate
    pre_s: seconds before the start whose values of the primary metric reduce its variance (CUPED), 0 for none
    """

    name: Name
    unit: Literal["user", "session", "request"] = "user"
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=16)
    control: Name
    coverage: Share = 1.0
    layer: Name = "routing"
    offset: Share = 0.0
    eligible: Eligible = Eligible()
    metrics: Metrics
    bandit: Bandit | None = None
    start: float | None = None
    stop: float | None = None
    target: int = Field(1000, ge=2, le=10**9)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    pre_s: float = Field(0, ge=0)

    @classmethod
    def parse(cls, data: object) -> Self:
        """Raises RouterError naming the key at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'experiment'}: {e['msg']}" for e in error.errors()]
            raise RouterError("; ".join(lines)) from None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have one name: {', '.join(names)}")
        if self.control not in names:
            raise ValueError(f"control {self.control!r} is no arm; there are: {', '.join(names)}")
        measured = self.metrics.all
        if len({metric.name for metric in measured}) < len(measured):
            raise ValueError("each metric is named once, as the primary, a secondary one or a guardrail")
        if self.offset + self.coverage > 1 + 1e-12:
            raise ValueError(f"offset {self.offset:g} and coverage {self.coverage:g} are more than the whole layer")
        if self.start is not None and self.stop is not None and self.stop <= self.start:
            raise ValueError("it stops before it starts")
        if self.bandit and self.bandit.explore * len(names) > 1:
            raise ValueError(f"bandit.explore is at most {1 / len(names):g} with {len(names)} arms")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The arms' shares of the traffic."""
        total = sum(arm.weight for arm in self.arms)
        return {arm.name: arm.weight / total for arm in self.arms}

    def may_become(self, other: "Definition") -> None:
        """Raises RouterError unless a running experiment may be changed so: its coverage may rise, its end may be set."""
        fixed = {"coverage", "stop"}
        before, after = self.model_dump(exclude=fixed), other.model_dump(exclude=fixed)
        if changed := sorted(key for key in before if before[key] != after[key]):
            raise RouterError(f"a running experiment keeps its {', '.join(changed)}; stop it, and define another")
        if other.coverage < self.coverage:
            raise RouterError(
                "the coverage of a running experiment may rise, not fall: it would send units away; stop arms instead"
            )


def check_layers(running: Mapping[str, Definition], new: Definition) -> None:
    """Raises RouterError if units of the new experiment are those of one that runs in its layer."""
    others = [d for name, d in running.items() if d.layer == new.layer and name != new.name]
    spans = sorted((d.offset, d.offset + d.coverage, d.name) for d in [*others, new] if d.coverage)
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end - 1e-12:
            raise RouterError(
                f"{first!r} and {second!r} would share units of the layer {new.layer!r}; give them offsets and coverages apart"
            )
