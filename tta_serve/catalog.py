"""The names a client can use, and what a request's `model` and `merge` mean."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from adapters.coefficient import Coefficient, numbers
from adapters.errors import MixError
from adapters.mix import Mix, MixRules
from tta_serve.config import ConfigError, ServeConfig
from tta_serve.protocol import MergeRequest, RequestError


@dataclass(frozen=True)
class Ask:
    """A request's wish: a policy to route by, or a mix already fixed.

    label: how the answer names what decided   preference: what the policy is to prefer
    free: whether the request leaves all to the server, so that an experiment may decide   arm: of the experiment that did
    ticket: under which outcomes of the request are sent   read: the text that policies read in place of the prompt
    warnings: what of the wish is not heeded
    """

    label: str
    policy: str | None = None
    mix: Mix | None = None
    preference: Mapping[str, float] | None = None
    free: bool = False
    arm: str | None = None
    ticket: str | None = None
    read: str | None = None
    warnings: tuple[str, ...] = ()

    def warned(self, more: Iterable[str]) -> "Ask":
        """The same wish, with more that is not heeded."""
        found = tuple(more)
        return replace(self, warnings=(*self.warnings, *found)) if found else self


@dataclass(frozen=True)
class Catalog:
    """served: the model's name   experts, entries, policies: what exists   choosers: the policies that heed a preference"""

    served: str
    rules: MixRules
    entries: dict[str, Mix]
    policies: tuple[str, ...]
    choosers: tuple[str, ...]
    default_policy: str

    @classmethod
    def of(
        cls,
        config: ServeConfig,
        experts: tuple[str, ...],
        layers: int,
        saved: Mapping[str, Mapping[str, Coefficient]] = MappingProxyType({}),
        *,
        strict: bool = True,
    ) -> "Catalog":
        """layers: of the base's decoder   saved: entries of experts that are all there, besides the config's

        Raises ConfigError for an entry that is no mix, or whose name is taken. If not `strict`, an entry of the config with an
        expert that is not there is left out.
        """
        mix = config.mix
        rules = MixRules(frozenset(experts), layers, mix.grid, mix.max_experts, mix.minimum, mix.maximum)
        entries: dict[str, Mix] = {}
        whole = {name: c for name, c in config.library.entries.items() if strict or c.keys() <= rules.names}
        placed = [(f"library.entries.{name}", name, c) for name, c in whole.items()]
        for place, name, coefficients in [*placed, *((f"the library's entry {name!r}", name, c) for name, c in saved.items())]:
            if name in experts or name == "base" or name in entries:
                raise ConfigError(f"{place}: an expert, the base or another entry has that name")
            try:
                entries[name] = rules.entry(coefficients)
            except MixError as error:
                raise ConfigError(f"{place}: {error}") from None
        choosers = tuple(name for name, policy in config.policies.items() if policy.type == "pareto")
        return cls(config.model.id, rules, entries, tuple(config.policies), choosers, config.default_policy)

    def models(self) -> list[str]:
        """All model names a client may send."""
        return [self.served, "auto", *self._pins]

    @property
    def _pins(self) -> dict[str, str]:
        """What each pinned model's name pins: `SERVED:NAME`, and the bare name of an expert."""
        experts = sorted(self.rules.names)
        pins = {f"{self.served}:{name}": name for name in ["base", *experts, *self.entries]}
        return pins | {name: name for name in experts if name not in (self.served, "auto")}

    def ask(self, model: str | None, merge: Any) -> Ask:
        """What a request wants. Raises RequestError: 404 for an unknown model, 400 for an unusable merge."""
        pin = self._pin(model)
        if merge is None:
            name = self.default_policy
            return Ask(name, policy=name, free=True) if pin is None else Ask("pinned", mix=self.pinned(pin))
        if pin is not None:
            raise RequestError(f"model {model!r} already fixes the mix; send merge with {self.served!r}", param="merge")
        return self._wished(MergeRequest.parse(merge))

    def _wished(self, wish: MergeRequest) -> Ask:
        if wish.policy is not None:
            _known("policy", wish.policy, self.policies)
        if wish.preference is not None:
            chooser = self._chooser(wish.policy)
            return Ask(chooser, policy=chooser, preference=wish.preference, read=wish.read)
        if wish.policy is not None or wish.read is not None:
            name = wish.policy or self.default_policy
            return Ask(name, policy=name, free=wish.policy is None, read=wish.read)
        if wish.entry is not None:
            return Ask("entry", mix=self.entries[_known("entry", wish.entry, tuple(self.entries))])
        if not wish.experts:
            raise RequestError(f"merge.experts names no expert; for the base send {self.served + ':base'!r}", param="merge")
        try:
            mix = self.rules.mix(wish.experts)
        except MixError as error:
            raise RequestError(f"merge.experts: {error}", param="merge.experts") from None
        return Ask("explicit", mix=mix, warnings=tuple(self._rounded_away(wish.experts)))

    def _rounded_away(self, coefficients: Mapping[str, Coefficient]) -> Iterator[str]:
        """Coefficients that the grid makes 0."""
        for name, coefficient in coefficients.items():
            if any(number and not self.rules.rounded(number) for number in numbers(coefficient)):
                yield f"merge.experts.{name}: a coefficient below half of the grid of {self.rules.grid} was taken as 0"

    def _chooser(self, policy: str | None) -> str:
        """The policy that is to heed a preference: the one named, else the default one, else the first that does."""
        if not self.choosers:
            raise RequestError("merge.preference: no policy of type pareto is configured to heed it", param="merge.preference")
        if policy is not None and policy not in self.choosers:
            raise RequestError(
                f"merge.preference: policy {policy!r} heeds none; these do: {', '.join(self.choosers)}",
                param="merge.preference",
            )
        return policy or (self.default_policy if self.default_policy in self.choosers else self.choosers[0])

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
        """The mix of the base, an expert or an entry."""
        if pin == "base":
            return Mix()
        return self.entries[pin] if pin in self.entries else Mix.of({pin: 1.0})


def _known(kind: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise RequestError(
            f"merge.{kind}: there is no {kind} {name!r}; there are: {', '.join(names) or 'none'}", param=f"merge.{kind}"
        )
    return name
