"""What an operator says of an experiment: whom it is for, what its arms do, what is measured."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from tta_serve.config.section import Section
from tta_serve.experiments.errors import ExperimentError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

_ROUNDING = 1e-12  # by which sums of shares may be above what they should be


class Arm(Section):
    """One of the policies that are compared, and its part of the traffic."""

    name: Name
    policy: str
    """The name of one of the server's policies."""
    weight: Positive = 1.0
    """The arm's part of the traffic is weight / sum of weights."""


class Metric(Section):
    """What is measured of a unit.

    It is either something that the server measures itself (`tta_serve.store.measures.BUILT_IN`), or
    the outcomes that users send under this name.
    """

    name: Name
    kind: Literal["share", "mean", "total", "ratio"] = "mean"
    """How a unit's values become one.

    `share` is their mean, where each is in [0, 1]; `mean` is the mean of any values; `total` is
    their sum; `ratio` is the sum over units of all values divided by how many there are, with units
    as clusters.
    """
    better: Literal["higher", "lower"] = "higher"
    """Whether higher or lower values are better."""


class Guardrail(Metric):
    """A metric in which no arm may be much worse than the control."""

    tolerated: float = Field(ge=0, allow_inf_nan=False)
    """By how much an arm may be worse; one that is surely worse than that is stopped."""


class Metrics(Section):
    """All that an experiment measures."""

    primary: Metric
    """The metric that decides who wins."""
    secondary: tuple[Metric, ...] = ()
    """Metrics that are compared too, and read together with the primary one."""
    guardrails: tuple[Guardrail, ...] = ()
    """Metrics that stop an arm which does harm."""

    @property
    def all(self) -> tuple[Metric, ...]:
        """Every metric, the primary first."""
        return self.primary, *self.secondary, *self.guardrails


class Eligible(Section):
    """Whose requests take part: all conditions that are given must hold."""

    models: frozenset[str] | None = None
    """The names by which the model may be asked for, None for any."""
    headers: Mapping[str, str] = {}
    """The values that headers must have, by lower-case name."""
    keys: frozenset[str] | None = None
    """Labels of API keys, from the config's `access.keys`; None for any key or none."""


class Bandit(Section):
    """Thompson sampling on the primary metric, in place of fixed weights."""

    explore: Share = 0.05
    """The least share of the traffic of every arm."""
    every_s: Positive = 60.0
    """How many seconds pass until the weights are computed anew."""


class Definition(Section):
    """An experiment as an operator defines it."""

    name: Name
    unit: Literal["user", "session", "request"] = "user"
    """Who is assigned: the body's `user`, the header `x-session-id`, or every request by itself."""
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=16)
    """The policies that are compared, the control among them."""
    control: Name
    """The name of the arm that the others are compared with."""
    coverage: Share = 1.0
    """The share of the units that take part."""
    layer: Name = "routing"
    """The name of the layer: experiments of one layer divide its units among them."""
    offset: Share = 0.0
    """Where in its layer the experiment begins; nobody is in two experiments of one layer."""
    eligible: Eligible = Eligible()
    """Whose requests take part."""
    metrics: Metrics
    """What is measured."""
    bandit: Bandit | None = None
    """How the weights follow the outcomes, None if they are fixed."""
    start: float | None = None
    """When assignment begins, UTC seconds since 1970; None for when it is started by hand."""
    stop: float | None = None
    """When assignment ends, UTC seconds since 1970; None for when it is stopped by hand."""
    target: int = Field(1000, ge=2, le=10**9)
    """Units per arm at which the analysis is sharpest."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """The error rate of the analysis."""
    pre_s: float = Field(0, ge=0)
    """Seconds before the start whose values of the primary metric reduce its variance (CUPED), 0
    for none."""

    @classmethod
    def parse(cls, data: object) -> Self:
        """Return a checked definition.

        Raises:
            ExperimentError: It cannot be; the message names the keys at fault.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc'])) or 'experiment'}: {e['msg']}"
                for e in error.errors()
            ]
            raise ExperimentError("; ".join(lines)) from None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        self._check_names()
        if self.offset + self.coverage > 1 + _ROUNDING:
            raise ValueError(
                f"offset {self.offset:g} and coverage {self.coverage:g} are more than the whole"
                " layer"
            )
        if self.start is not None and self.stop is not None and self.stop <= self.start:
            raise ValueError("it stops before it starts")
        count = len(self.arms)
        if self.bandit and self.bandit.explore * count > 1:
            raise ValueError(f"bandit.explore is at most {1 / count:g} with {count} arms")
        return self

    def _check_names(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have one name: {', '.join(names)}")
        if self.control not in names:
            raise ValueError(f"control {self.control!r} is no arm; there are: {', '.join(names)}")
        measured = self.metrics.all
        if len({metric.name for metric in measured}) < len(measured):
            raise ValueError(
                "each metric is named once, as the primary, a secondary one or a guardrail"
            )

    @property
    def weights(self) -> dict[str, float]:
        """The arms' shares of the traffic, of sum 1."""
        total = sum(arm.weight for arm in self.arms)
        return {arm.name: arm.weight / total for arm in self.arms}

    def check_change(self, other: "Definition") -> None:
        """Check that a running experiment may be changed into another.

        Its coverage may rise and its end may be set; all else stays.

        Raises:
            ExperimentError: The change would do more than that.
        """
        free = {"coverage", "stop"}
        before = self.model_dump(exclude=free)
        after = other.model_dump(exclude=free)
        if changed := sorted(key for key in before if before[key] != after[key]):
            raise ExperimentError(
                f"a running experiment keeps its {', '.join(changed)}; stop it, and define another"
            )
        if other.coverage < self.coverage:
            raise ExperimentError(
                "the coverage of a running experiment may rise, not fall: it would send units away;"
                " stop arms instead"
            )


def check_layers(running: Mapping[str, Definition], new: Definition) -> None:
    """Check that an experiment shares no units with those that run in its layer.

    Args:
        running: The experiments that run, by name; an older version of the new one may be in it.

    Raises:
        ExperimentError: Two experiments would share units.
    """
    beside = [
        other for name, other in running.items() if other.layer == new.layer and name != new.name
    ]
    spans = sorted(
        (experiment.offset, experiment.offset + experiment.coverage, experiment.name)
        for experiment in [*beside, new]
        if experiment.coverage
    )
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end - _ROUNDING:
            raise ExperimentError(
                f"{first!r} and {second!r} would share units of the layer {new.layer!r}; give them"
                " offsets and coverages apart"
            )
