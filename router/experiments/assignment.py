"""Who gets which arm: a pure function of the unit and of what the experiment says, the same wherever it is computed.

    u = H(layer, unit)          in the experiment if offset <= u < offset + coverage
    v = H(name, unit)           its arm is the one whose part of [0, 1), in the arms' order and as wide as its weight, has v

H is the first 53 bits of keyed BLAKE2b over 2^53, uniform in [0, 1). A higher coverage adds units and moves none. The units of
an arm that was stopped get the control, all others keep theirs. Hashing with a key of its own makes an experiment's arms
independent of every other's (Kohavi, Tang & Xu 2020, section 14).
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from router.experiments.definition import Definition

_BITS = 53


@dataclass(frozen=True)
class Request:
    """What assignment reads of a request. headers: by lower-case name   key: the label of its API key

    user, session: None where it names none
    """

    id: str
    user: str | None
    session: str | None
    model: str
    headers: Mapping[str, str]
    key: str | None = None


@dataclass(frozen=True)
class Assigned:
    """unit: a hash, as logs have it   propensity: the probability that this unit gets this arm"""

    experiment: str
    version: int
    arm: str
    policy: str
    unit: str
    propensity: float


class Running:
    """An experiment as replicas assign by it."""

    def __init__(
        self,
        definition: Definition,
        version: int,
        stopped: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """stopped: arms without traffic; if the control is one, nobody is assigned   weights: instead of the definition's"""
        self.definition, self.version = definition, version
        self._weights = {arm.name: (weights or definition.weights)[arm.name] for arm in definition.arms}
        self._ends = list(accumulate(self._weights.values()))
        self._arms = [definition.control if arm.name in stopped else arm.name for arm in definition.arms]
        self._policies = {arm.name: arm.policy for arm in definition.arms}
        self._shares = {
            name: sum(w for w, arm in zip(self._weights.values(), self._arms, strict=True) if arm == name)
            for name in set(self._arms)
        }
        self._off = definition.control in stopped

    def assign(self, request: Request, now: float) -> Assigned | None:
        """None if the request takes no part. now: UTC seconds since 1970"""
        d = self.definition
        if self._off or (d.start is not None and now < d.start) or (d.stop is not None and now >= d.stop):
            return None
        unit = {"user": request.user, "session": request.session, "request": request.id}[d.unit]
        if not unit or not self._eligible(request):
            return None
        if not d.offset <= uniform(d.layer, unit) < d.offset + d.coverage:
            return None
        place = min(bisect_right(self._ends, uniform(d.name, unit)), len(self._arms) - 1)
        arm = self._arms[place]
        return Assigned(d.name, self.version, arm, self._policies[arm], hashed(unit), self._shares[arm])

    def _eligible(self, request: Request) -> bool:
        wanted = self.definition.eligible
        return (
            (wanted.models is None or request.model in wanted.models)
            and (wanted.keys is None or request.key in wanted.keys)
            and all(request.headers.get(name.lower()) == value for name, value in wanted.headers.items())
        )


def assign(running: Sequence[Running], request: Request, now: float) -> Assigned | None:
    """The first experiment that takes the request, in the order of their names as they are given."""
    for experiment in running:
        if (assigned := experiment.assign(request, now)) is not None:
            return assigned
    return None


def uniform(salt: str, unit: str) -> float:
    """H(salt, unit), in [0, 1)."""
    digest = blake2b(unit.encode(errors="surrogatepass"), digest_size=8, key=blake2b(salt.encode(), digest_size=32).digest())
    return (int.from_bytes(digest.digest(), "big") >> (64 - _BITS)) / (1 << _BITS)


def hashed(unit: str) -> str:
    """The unit as logs have it: the same in all experiments, so that one's units can be found before another began."""
    return blake2b(unit.encode(errors="surrogatepass"), digest_size=16, key=b"tta-unit").hexdigest()
