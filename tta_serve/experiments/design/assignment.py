"""Who gets which arm: a pure function of the unit and of what the experiment says.

It is the same wherever it is computed:

    u = H(layer, unit)    the unit is in the experiment if offset <= u < offset + coverage
    v = H(name, unit)     its arm is the one whose part of [0, 1) contains v, where the parts lie in
                          the arms' order and each is as wide as the arm's weight

H is the first 53 bits of keyed BLAKE2b over 2^53, uniform in [0, 1). A higher coverage adds units
and moves none. The units of an arm that was stopped get the control, all others keep theirs.
Hashing with a key of its own makes an experiment's arms independent of every other's (Kohavi, Tang
& Xu 2020, section 14).
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from tta_serve.experiments.design.definition import Definition

_BITS = 53


@dataclass(frozen=True)
class Request:
    """What assignment reads of a request."""

    id: str
    user: str | None
    """The body's `user`, None where it names none."""
    session: str | None
    """The header `x-session-id`, None where there is none."""
    model: str
    """The name by which the model was asked for."""
    headers: Mapping[str, str]
    """The headers' values, by lower-case name."""
    key: str | None = None
    """The label of its API key, None where the config has none for it."""


@dataclass(frozen=True)
class Assignment:
    """The arm that a request's unit gets. Its fields are columns of an exposure."""

    experiment: str
    version: int
    arm: str
    policy: str
    unit: str
    """The unit's hash, as logs have it."""
    propensity: float
    """The probability that this unit gets this arm."""


class RunningExperiment:
    """A version of an experiment as replicas assign by it."""

    def __init__(
        self,
        definition: Definition,
        version: int,
        stopped: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Prepare what every assignment needs.

        Args:
            stopped: The arms without traffic; if the control is one, nobody is assigned.
            weights: Weights of sum 1 in place of the definition's, as a bandit has them.
        """
        self.definition = definition
        self.version = version
        shares = weights or definition.weights
        widths = [shares[arm.name] for arm in definition.arms]

        self._ends = list(accumulate(widths))
        # A stopped arm keeps its part of [0, 1), in which the control answers.
        self._arms = [
            definition.control if arm.name in stopped else arm.name for arm in definition.arms
        ]
        self._policies = {arm.name: arm.policy for arm in definition.arms}
        self._propensities = {
            name: sum(width for width, arm in zip(widths, self._arms, strict=True) if arm == name)
            for name in set(self._arms)
        }
        self._is_off = definition.control in stopped

    def assign(self, request: Request, now: float) -> Assignment | None:
        """Return the request's arm, None if it takes no part.

        Args:
            now: UTC seconds since 1970.
        """
        definition = self.definition
        unit = self._unit_of(request)
        if not self._is_open(now) or not unit or not self._is_eligible(request):
            return None
        begin = definition.offset
        if not begin <= uniform(definition.layer, unit) < begin + definition.coverage:
            return None

        # The last end may be rounded to just below 1.
        place = bisect_right(self._ends, uniform(definition.name, unit))
        arm = self._arms[min(place, len(self._arms) - 1)]
        return Assignment(
            experiment=definition.name,
            version=self.version,
            arm=arm,
            policy=self._policies[arm],
            unit=hash_unit(unit),
            propensity=self._propensities[arm],
        )

    def _is_open(self, now: float) -> bool:
        start = self.definition.start
        stop = self.definition.stop
        if self._is_off or (start is not None and now < start):
            return False
        return stop is None or now < stop

    def _unit_of(self, request: Request) -> str | None:
        kind = self.definition.unit
        if kind == "user":
            return request.user
        return request.session if kind == "session" else request.id

    def _is_eligible(self, request: Request) -> bool:
        wanted = self.definition.eligible
        return (
            (wanted.models is None or request.model in wanted.models)
            and (wanted.keys is None or request.key in wanted.keys)
            and all(
                request.headers.get(name.lower()) == value for name, value in wanted.headers.items()
            )
        )


def assign(running: Sequence[RunningExperiment], request: Request, now: float) -> Assignment | None:
    """Return the arm in the first experiment that takes the request, in the order given."""
    for experiment in running:
        if (assigned := experiment.assign(request, now)) is not None:
            return assigned
    return None


def uniform(salt: str, unit: str) -> float:
    """Return H(salt, unit), in [0, 1)."""
    digest = blake2b(
        unit.encode(errors="surrogatepass"),
        digest_size=8,
        key=blake2b(salt.encode(), digest_size=32).digest(),
    )
    return (int.from_bytes(digest.digest(), "big") >> (64 - _BITS)) / (1 << _BITS)


def hash_unit(unit: str) -> str:
    """Return the unit as logs have it.

    It is the same in all experiments, so that a unit's values from before one began can be found.
    """
    return blake2b(unit.encode(errors="surrogatepass"), digest_size=16, key=b"tta-unit").hexdigest()
