"""The names a client can use, and what a request's `model` and `merge` mean."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from adapters.coefficient import Coefficient, numbers_of
from adapters.errors import MixError
from adapters.library.twins import TwinTies
from adapters.mix import Mix, MixRules
from router.decision import ActsFrom
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.protocol import MergeRequest
from tta_serve.serving.reading.validation import explain_validation

_NO_TIES = TwinTies()
_ONE_OF = "merge takes exactly one of: experts, segments, policy, entry, preference"
_TOGETHER: tuple[set[str], ...] = (
    {"policy", "preference"},
    {"policy", "preference", "read"},
    {"read"},
    set(),
)


@dataclass(frozen=True)
class Wish:
    """A request's wish: a policy to route by, or a mix already fixed."""

    label: str
    """How the answer names what decided."""
    policy: str | None = None
    mix: Mix | None = None
    then: tuple[Mix, ...] = ()
    """The mixes that are to answer after it, each a segment of the answer."""
    pinned: str | None = None
    """The expert that the request's model pins, None if it pins none."""
    preference: Mapping[str, float] | None = None
    """What the policy is to prefer."""
    free: bool = False
    """Whether the request leaves all to the server, so that an experiment may decide."""
    arm: str | None = None
    """Of the experiment that did."""
    ticket: str | None = None
    """Under which outcomes of the request are sent."""
    read: str | None = None
    """The text that policies read in place of the prompt."""
    acts_from: ActsFrom | None = None
    """Where the mix is to begin to act, if the request says so."""
    warnings: tuple[str, ...] = ()
    """What of the wish is not heeded."""

    def with_warnings(self, more: Iterable[str]) -> "Wish":
        """The same wish, with more that is not heeded."""
        found = tuple(more)
        return replace(self, warnings=(*self.warnings, *found)) if found else self


@dataclass(frozen=True)
class Catalog:
    """Every name that a request may use, and what it means."""

    served: str
    """The model's name."""
    rules: MixRules
    """What a mix may be, and the names of the experts."""
    entries: dict[str, Mix]
    policies: tuple[str, ...]
    choosers: tuple[str, ...]
    """The policies that heed a preference."""
    default_policy: str

    @classmethod
    def of(  # noqa: PLR0913 - all that names come from
        cls,
        config: ServeConfig,
        experts: tuple[str, ...],
        layers: int,
        saved: Mapping[str, Mapping[str, Coefficient]] = MappingProxyType({}),
        ties: TwinTies = _NO_TIES,
        *,
        alone: Collection[str] = (),
        strict: bool = True,
    ) -> "Catalog":
        """Return the catalog of a config and its experts.

        If not `strict`, an entry of the config with an expert that is not there is left out.

        Args:
            layers: Of the base's decoder.
            saved: Entries of experts that are all there, besides the config's.
            ties: What parts of Twin-Merging among the experts mean.
            alone: The experts that may be used only alone.
        """
        mix = config.mix
        rules = MixRules(
            frozenset(experts),
            layers,
            mix.grid,
            mix.max_experts,
            mix.minimum,
            mix.maximum,
            ties.shared,
            ties.aside,
            frozenset(alone),
        )
        entries: dict[str, Mix] = {}
        whole = {
            name: c
            for name, c in config.library.entries.items()
            if strict or c.keys() <= rules.names
        }
        placed = [(f"library.entries.{name}", name, c) for name, c in whole.items()]
        for place, name, coefficients in [
            *placed,
            *((f"the library's entry {name!r}", name, c) for name, c in saved.items()),
        ]:
            if name in experts or name == "base" or name in entries:
                raise ConfigError(f"{place}: an expert, the base or another entry has that name")
            try:
                entries[name] = rules.entry(coefficients)
            except MixError as error:
                raise ConfigError(f"{place}: {error}") from None
        choosers = tuple(
            name for name, policy in config.policies.items() if policy.type == "pareto"
        )
        return cls(
            config.model.id, rules, entries, tuple(config.policies), choosers, config.default_policy
        )

    def models(self) -> list[str]:
        """All model names a client may send."""
        return [self.served, "auto", *self._pins]

    @property
    def _pins(self) -> dict[str, str]:
        """What each pinned model's name pins: `SERVED:NAME`, and the bare name of an expert."""
        experts = sorted(self.rules.names)
        pins = {f"{self.served}:{name}": name for name in ["base", *experts, *self.entries]}
        return pins | {name: name for name in experts if name not in (self.served, "auto")}

    def read_wish(self, model: str | None, merge: Any) -> Wish:
        """What a request wants.

        Raises RequestError: 404 for an unknown model, 400 for an unusable merge.
        """
        pin = self._pin(model)
        if merge is None:
            name = self.default_policy
            return Wish(name, policy=name, free=True) if pin is None else self._wish_pinned(pin)
        wanted = _read_merge(merge)
        if pin is None:
            return replace(self._wish_of(wanted), acts_from=wanted.acts_from)
        if not _says_where_alone(wanted):
            raise RequestError(
                f"model {model!r} already fixes the mix; send merge with {self.served!r}",
                param="merge",
            )
        return self._wish_pinned(pin, wanted.acts_from)

    def _wish_pinned(self, pin: str, acts_from: ActsFrom | None = None) -> Wish:
        expert = pin if pin in self.rules.names else None
        return Wish("pinned", mix=self.pinned(pin), pinned=expert, acts_from=acts_from)

    def _wish_of(self, wish: MergeRequest) -> Wish:
        if wish.policy is not None:
            _known("policy", wish.policy, self.policies)
        if wish.preference is not None:
            chooser = self._chooser(wish.policy)
            return Wish(chooser, policy=chooser, preference=wish.preference, read=wish.read)
        if wish.policy is not None or wish.read is not None or _says_where_alone(wish):
            name = wish.policy or self.default_policy
            return Wish(name, policy=name, free=wish.policy is None, read=wish.read)
        if wish.entry is not None:
            return Wish("entry", mix=self.entries[_known("entry", wish.entry, tuple(self.entries))])
        if not (wish.experts or wish.segments):
            raise RequestError(
                f"merge.experts names no expert; for the base send {self.served + ':base'!r}",
                param="merge",
            )
        given = {"merge.experts": wish.experts or {}}
        if wish.segments:
            given = {f"merge.segments[{k}]": own for k, own in enumerate(wish.segments)}
        mix, *then = [self._read_mix(place, own) for place, own in given.items()]
        warnings = [text for place, own in given.items() for text in self._rounded_away(place, own)]
        return Wish("explicit", mix=mix, then=tuple(then), warnings=tuple(warnings))

    def _read_mix(self, place: str, coefficients: Mapping[str, Coefficient]) -> Mix:
        """Return the mix of some coefficients. Raises RequestError for what is none."""
        try:
            return self.rules.mix(coefficients)
        except MixError as error:
            raise RequestError(f"{place}: {error}", param=place) from None

    def _rounded_away(self, place: str, coefficients: Mapping[str, Coefficient]) -> Iterator[str]:
        """Coefficients that the grid makes 0."""
        for name, coefficient in coefficients.items():
            if any(number and not self.rules.snap(number) for number in numbers_of(coefficient)):
                yield (
                    f"{place}.{name}: a coefficient below half of the grid of"
                    f" {self.rules.grid} was taken as 0"
                )

    def _chooser(self, policy: str | None) -> str:
        """Return the policy that is to heed a preference.

        It is the one named, else the default one, else the first that does.
        """
        if not self.choosers:
            raise RequestError(
                "merge.preference: no policy of type pareto is configured to heed it",
                param="merge.preference",
            )
        if policy is not None and policy not in self.choosers:
            raise RequestError(
                f"merge.preference: policy {policy!r} heeds none; these do:"
                f" {', '.join(self.choosers)}",
                param="merge.preference",
            )
        return policy or (
            self.default_policy if self.default_policy in self.choosers else self.choosers[0]
        )

    def _pin(self, model: str | None) -> str | None:
        if model is None or model in (self.served, "auto"):
            return None
        if model not in self._pins:
            raise self.unknown(model)
        return self._pins[model]

    def unknown(self, model: str) -> RequestError:
        """The refusal of a model that does not exist."""
        message = f"The model {model!r} does not exist; there are: {', '.join(self.models())}"
        return RequestError(message, status=404, param="model")

    def pinned(self, pin: str) -> Mix:
        """The mix of the base, an expert or an entry.

        Of an exclusive part of Twin-Merging it is that and the shared one: the expert itself.
        """
        if pin == "base":
            return Mix()
        return self.entries[pin] if pin in self.entries else self.rules.complete({pin: 1.0})


def _known(kind: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise RequestError(
            f"merge.{kind}: there is no {kind} {name!r}; there are: {', '.join(names) or 'none'}",
            param=f"merge.{kind}",
        )
    return name


def _says_where_alone(wish: MergeRequest) -> bool:
    """Return whether a wish leaves the mix open, and says only where it is to act."""
    return wish.model_dump(exclude_none=True).keys() == {"acts_from"}


def _read_merge(value: Any) -> MergeRequest:
    """Read the `merge` field. Raises RequestError that names the fields there are."""
    try:
        merge = MergeRequest.model_validate(value)
    except ValidationError as error:
        message, place = explain_validation(
            [{**one, "loc": ("merge", *one["loc"])} for one in error.errors()]
        )
        raise RequestError(f"{message}; {_ONE_OF}", param=place or "merge") from None
    given = merge.model_dump(exclude_none=True).keys() - {"acts_from"}
    if not given and merge.acts_from is None:
        raise RequestError(_ONE_OF, param="merge")
    if not (len(given - {"read"}) == 1 or given in _TOGETHER):
        raise RequestError(
            f"{_ONE_OF}; or a policy with a preference, or read or acts_from alone", param="merge"
        )
    if "read" in given and given & {"experts", "segments", "entry"}:
        raise RequestError(
            "merge.read: experts, segments and entry leave nothing to a policy to read",
            param="merge.read",
        )
    return merge
