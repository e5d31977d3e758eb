"""The page that documents every field of a config, made of the config's own schema."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tta_serve.config.sections import ServeConfig

_INTRODUCTION = """# The config

A server is told all in one YAML file: `tta serve --config FILE`. An unknown key stops the start.
Paths are relative to the file. On top of it goes the environment, `TTA__SERVER__PORT=9000` for
`server.port` (as YAML), or `TTA__STORE__URL__FILE=/run/secrets/url` for a value that a file holds;
then the options of `tta serve`. The key of management is `TTA_ADMIN_KEY`, or the content of the
file `TTA_ADMIN_KEY_FILE`.

`tta config check FILE` says what is wrong, also with the experts and the base; `tta config show
FILE` prints the whole config with its defaults; `tta config schema` prints the JSON schema, for
editors. `tta config reference` prints this page.
"""


def make_reference() -> str:
    """Return the page, as Markdown."""
    schema = ServeConfig.model_json_schema()
    parts = [_INTRODUCTION]
    for place, section in _walk(schema):
        parts.append(
            f"\n## {place or 'The sections'}\n\n{_paragraph(section.get('description', ''))}"
        )
        parts.append("\n| key | type | default | what it is |\n| --- | --- | --- | --- |")
        wanted = section.get("required", ())
        for name, field in section["properties"].items():
            default = "needed" if name in wanted else _show_default(field)
            text = _paragraph(field.get("description", "")).replace("|", "\\|")
            parts.append(f"| `{name}` | {_name_type(field)} | {default} | {text} |")
    return "\n".join(parts) + "\n"


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each section with its dotted place, the whole first."""
    known = schema["$defs"]

    def inside(place: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield place, section
        for name, field in section["properties"].items():
            for reference, suffix in _find_sections(field):
                here = f"{place}.{name}" if place else name
                yield from inside(f"{here}{suffix}", known[reference])

    yield from inside("", schema)


def _find_sections(field: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each section that a field holds, and what follows the field's place."""
    for one in (field, *field.get("anyOf", ())):
        if "$ref" in one:
            yield one["$ref"].rpartition("/")[2], ""
    values = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
    for one in values:
        if isinstance(one, dict) and "$ref" in one:
            yield one["$ref"].rpartition("/")[2], ".NAME"


def _name_type(field: Mapping[str, Any]) -> str:
    if sections := list(_find_sections(field)):
        return "sections by name" if sections[0][1] else "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_name_type(one) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_name_type(field['items'])}"
    names = {"object": "mapping", "null": "null"}
    kind: str = field.get("type", "any")
    return names.get(kind, kind) + _name_bounds(field)


def _name_bounds(field: Mapping[str, Any]) -> str:
    words = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = [f"{sign} {field[key]}" for key, sign in words.items() if key in field]
    return f" {', '.join(bounds)}" if bounds else ""


def _show_default(field: Mapping[str, Any]) -> str:
    if "default" not in field or list(_find_sections(field)):
        return ""
    return f"`{json.dumps(field['default'])}`"


def _paragraph(text: str) -> str:
    return " ".join(text.split())
