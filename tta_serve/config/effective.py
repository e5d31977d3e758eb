"""A config as it is in force, for people to read: with all defaults, and without secrets."""

import re
from typing import Any

from sqlalchemy.engine import make_url

from tta_serve.config.sections import ServeConfig

HIDDEN = "***"
_SHOWN_OF_HASH = 8
_SECRET = re.compile(r"(.*_)?(token|secret|password|api_?key|credentials?)", re.IGNORECASE)


def describe_config(config: ServeConfig) -> dict[str, Any]:
    """Return a config as YAML or JSON can hold it.

    Hidden are the password of the store's URL, all but the beginning of keys' hashes, and what
    engine arguments say under a name such as `hf_token`.
    """
    shown = config.model_dump(mode="json")
    for key in shown["access"]["keys"].values():
        key["sha256"] = key["sha256"][:_SHOWN_OF_HASH] + HIDDEN
    if shown["store"] is not None:
        url = make_url(shown["store"]["url"])
        shown["store"]["url"] = url.render_as_string(hide_password=True)
    shown["model"]["engine_args"] = _hide(shown["model"]["engine_args"])
    return shown


def _hide(value: Any) -> Any:
    """Hide what stands under the name of a secret, at any depth."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET.fullmatch(str(name)) else _hide(inner)
            for name, inner in value.items()
        }
    return [_hide(inner) for inner in value] if isinstance(value, list) else value
