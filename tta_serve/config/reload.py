"""What of a config may change while a server serves by it."""

from collections.abc import Iterator, Mapping
from typing import Any

from tta_serve.config.loading import make_config
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError

RELOADABLE = (
    "mix",
    "policies",
    "default_policy",
    "library.entries",
    "access",
    "server.max_queued",
    "server.max_request_bytes",
    "server.max_prompt_tokens",
    "server.max_answer_tokens",
    "server.body_timeout_s",
    "server.request_timeout_s",
    "experiments.shadow",
)
"""The places that may change; a new value replaces all that stands there."""


def select_reloadable(config: ServeConfig) -> dict[str, Any]:
    """Return what may change of a config, in the form of its YAML."""
    data = config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for place in RELOADABLE:
        section, _, name = place.partition(".")
        if name:
            found.setdefault(section, {})[name] = data[section][name]
        else:
            found[section] = data[section]
    return found


def reload_config(config: ServeConfig, given: Mapping[str, Any]) -> ServeConfig:
    """Return a config with new values.

    Args:
        config: The one that is in force.
        given: The new values, in the form of its YAML. What is not there stays as it is.

    Raises ConfigError for a place that cannot change, or a value that cannot be used.
    """
    data = config.model_dump(mode="json")
    for place, value in _read_places(given):
        section, _, name = place.partition(".")
        if name:
            data[section][name] = value
        else:
            data[section] = value
    return make_config(data, "the new config")


def _read_places(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each place that is to change, with its new value."""
    whole = {place for place in RELOADABLE if "." not in place}
    for section, value in given.items():
        if section in whole:
            yield section, value
            continue
        inner = value if isinstance(value, Mapping) and value else {"": value}
        for name, new in inner.items():
            place = f"{section}.{name}".rstrip(".")
            if place not in RELOADABLE:
                raise ConfigError(
                    f"{place} cannot change while the server runs; these can:"
                    f" {', '.join(RELOADABLE)}"
                )
            yield place, new


def list_differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Return the dotted places in which two configs differ, both in the form of YAML."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [place]
    return [
        found
        for name in sorted(old.keys() | new.keys(), key=str)
        for found in (
            list_differences(old[name], new[name], f"{place}.{name}".lstrip("."))
            if name in old and name in new
            else [f"{place}.{name}".lstrip(".")]
        )
    ]
