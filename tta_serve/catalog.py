"""The names a client can use, and what a request's `model` and `merge` mean."""

from dataclasses import dataclass
from typing import Any

from adapters.errors import MixError
from adapters.mix import Mix, MixRules
from tta_serve.config import ConfigError, ServeConfig
from tta_serve.protocol import MergeRequest, RequestError


@dataclass(frozen=True)
class Ask:
    """A request's wish: a policy to route by, or a mix already fixed. label: how the answer names what decided."""

    label: str
    policy: str | None = None
    mix: Mix | None = None


@dataclass(frozen=True)
class Catalog:
    """served: the model's name   experts, entries, policies: what exists"""

    served: str
    rules: MixRules
    entries: dict[str, Mix]
    policies: tuple[str, ...]
    default_policy: str

    @classmethod
    def of(cls, config: ServeConfig, experts: tuple[str, ...], layers: int) -> "Catalog":
        """layers: of the base's decoder. Raises ConfigError for an entry that is no mix, or that has an expert's name."""
        mix = config.mix
        rules = MixRules(frozenset(experts), layers, mix.grid, mix.max_experts, mix.minimum, mix.maximum)
        entries = {}
        for name, coefficients in config.library.entries.items():
            if name in experts or name == "base":
                raise ConfigError(f"library.entries.{name}: an expert or the base has that name")
            try:
                entries[name] = rules.mix(coefficients)
            except MixError as error:
                raise ConfigError(f"library.entries.{name}: {error}") from None
        return cls(config.model.id, rules, entries, tuple(config.policies), config.default_policy)

    def models(self) -> list[str]:
        """All model names a client may send."""
        pins = ["base", *sorted(self.rules.names), *self.entries]
        return [self.served, *(f"{self.served}:{pin}" for pin in pins)]

    def ask(self, model: str | None, merge: Any) -> Ask:
        """What a request wants. Raises RequestError: 404 for an unknown model, 400 for an unusable merge."""
        pin = self._pin(model)
        if merge is None:
            return (
                Ask(self.default_policy, policy=self.default_policy) if pin is None else Ask("pinned", mix=self._pinned(pin))
            )
        if pin is not None:
            raise RequestError(f"model {model!r} already fixes the mix; send merge with {self.served!r}", param="merge")
        wish = MergeRequest.parse(merge)
        if wish.policy is not None:
            return Ask(wish.policy, policy=_known("policy", wish.policy, self.policies))
        if wish.entry is not None:
            return Ask("entry", mix=self.entries[_known("entry", wish.entry, tuple(self.entries))])
        if not wish.experts:
            raise RequestError(f"merge.experts names no expert; for the base send {self.served + ':base'!r}", param="merge")
        try:
            return Ask("explicit", mix=self.rules.mix(wish.experts))
        except MixError as error:
            raise RequestError(f"merge.experts: {error}", param="merge.experts") from None

    def _pin(self, model: str | None) -> str | None:
        if model is None or model in (self.served, "auto"):
            return None
        served, _, pin = model.partition(":")
        if served != self.served or f"{served}:{pin}" not in self.models():
            raise RequestError(
                f"The model {model!r} does not exist; there are: {', '.join(['auto', *self.models()])}",
                status=404,
                param="model",
            )
        return pin

    def _pinned(self, pin: str) -> Mix:
        if pin == "base":
            return Mix()
        return self.entries[pin] if pin in self.entries else Mix.of({pin: 1.0})


def _known(kind: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise RequestError(
            f"merge.{kind}: there is no {kind} {name!r}; there are: {', '.join(names) or 'none'}", param=f"merge.{kind}"
        )
    return name
