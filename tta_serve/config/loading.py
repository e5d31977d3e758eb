"""Reading a config: a YAML file, the environment on top of it, options on top of both."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError

KEY_VARIABLE = "TTA_ADMIN_KEY"
"""The variable of the environment that holds the key of management."""
_PREFIX = "TTA__"
_SQLITE = "sqlite:///"
_PATHS = (
    "model.chat_template",
    "library.path",
    "library.everyday",
    "library.readings",
    "server.log.file",
)
"""Places of paths, which are relative to the file."""


def load(
    path: Path | None,
    overrides: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> ServeConfig:
    """Read the config of a server.

    Args:
        path: Its YAML file, None for none.
        overrides: Values by dotted place, such as {"server.port": 9000}, on top of all else; None
            leaves a place as it is.
        environment: Values on top of the file: TTA__SERVER__PORT=9000 is server.port, as YAML, and
            TTA__STORE__URL__FILE=/run/secrets/url is store.url, as the file has it.

    Raises ConfigError.
    """
    data = _read(path) if path else {}
    given = _read_environment(environment)
    for dotted, value in {**given, **overrides}.items():
        if value is not None:
            _set(data, dotted.split("."), value)
    source = str(path or "the given options")
    if given:
        source = f"{source}, with {', '.join(given)} of the environment,"
    return make_config(data, source)


def make_config(data: Mapping[str, Any], source: str) -> ServeConfig:
    """Return a config of what YAML says.

    Args:
        data: The sections.
        source: What errors call it.

    Raises ConfigError that names each place that is wrong.
    """
    try:
        return ServeConfig.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError("\n".join([f"{source} cannot be used:", *lines])) from None


def read_admin_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key of management that the environment holds, or names the file of.

    Raises ConfigError if the file cannot be read.
    """
    file = environment.get(f"{KEY_VARIABLE}_FILE")
    return environment.get(KEY_VARIABLE) if file is None else _read_secret(file)


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that the environment sets, by dotted place."""
    found: dict[str, Any] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(_PREFIX):
            continue
        *keys, last = name.removeprefix(_PREFIX).lower().split("__")
        if last == "file" and keys:
            found[".".join(keys)] = _read_secret(text)
            continue
        try:
            found[".".join([*keys, last])] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{name} in the environment is not YAML: {text!r:.80}") from None
    return found


def _read_secret(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} of the environment cannot be read: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold sections such as model: and library:")
    for place in _PATHS:
        *sections, key = place.split(".")
        section: Any = data
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = _beside(path, section[key])
    store = data.get("store")
    if isinstance(store, dict) and str(store.get("url")).startswith(_SQLITE):
        store["url"] = _SQLITE + _beside(path, store["url"].removeprefix(_SQLITE))
    return data


def _beside(file: Path, given: str) -> str:
    return os.path.realpath(file.parent / Path(given).expanduser())


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key} is no section, it is {data!r:.80}")
    data[keys[-1]] = value
