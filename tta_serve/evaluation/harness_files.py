"""The files of a task of lm-evaluation-harness: its YAML, with what it includes, and its data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from tta_serve.exceptions import ConfigError

Document = dict[str, Any]
"""One row of the data, by column."""


@dataclass(frozen=True)
class _FunctionTag:
    name: str


class _Loader(yaml.SafeLoader):
    """Makes nothing but plain values: a function is named, and neither imported nor called."""


def _name_function(loader: yaml.SafeLoader, node: yaml.Node) -> _FunctionTag:
    return _FunctionTag(str(node.value))


_Loader.add_constructor("!function", _name_function)


def find_task_files(place: Path) -> list[Path]:
    """Return a task's file itself, or the files of all tasks in a folder and those below it.

    Files without a `task` are there to be included, and groups name tasks that have files of their
    own: both are passed over in a folder.

    Raises:
        ConfigError: There is no such place, or no task in it; a file in it cannot be read.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ConfigError(f"--tasks {place}: there is no such folder or file")
    files = [file for file in sorted(place.rglob("*.yaml")) if _defines_task(file)]
    if not files:
        raise ConfigError(f"--tasks {place}: no *.yaml in it names a `task`")
    return files


def _defines_task(file: Path) -> bool:
    values = _read_merged(file, ())
    return isinstance(values.get("task"), str) and "group" not in values


def read_task_file(file: Path) -> dict[str, Any]:
    """Read a task's YAML on top of what it includes.

    Raises:
        ConfigError: A file cannot be read, or wants Python to run; the message names the key.
    """
    values = _read_merged(file, ())
    for key, function in _find_functions(values, ""):
        raise ConfigError(
            f"{file}: {key}: `!function {function}` would run Python, which `tta eval` does not;"
            " write a Jinja2 template, or prepare the data files so that none is needed"
        )
    return values


def _read_merged(file: Path, includers: Sequence[Path]) -> dict[str, Any]:
    """Read a YAML file, whose keys win over those of the files that it includes."""
    place = file.resolve()
    if place in includers:
        raise ConfigError(f"{file}: include: it includes itself")
    own = _read_yaml(file)
    named = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in named if isinstance(named, list) else [named]:
        merged |= _read_merged(file.parent / str(name), (*includers, place))
    return merged | own


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: wanted a task of lm-evaluation-harness, keys with values")
    return values


def _find_functions(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield where Python is asked for, as a dotted key, and which function."""
    if isinstance(value, _FunctionTag):
        yield key, value.name
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        pairs = iter(value.items())
    elif isinstance(value, list):
        pairs = iter(enumerate(value))
    for name, child in pairs:
        yield from _find_functions(child, f"{key}.{name}" if key else str(name))


def read_documents(kind: str, files: Sequence[Path]) -> list[Document]:
    """Read the rows of data files; a column that a row has not is None in it.

    JSON has one object a line, or a list of objects; CSV a first line of names; of a text each line
    is a row with the column `text`.

    Args:
        kind: One of `READERS`.
        files: In this order.

    Raises:
        ConfigError: A file cannot be read; the message names it.
    """
    found = [row for file in files for row in _read_rows(kind, file)]
    columns = dict.fromkeys(name for row in found for name in row)
    return [{name: row.get(name) for name in columns} for row in found]


def _read_rows(kind: str, file: Path) -> list[Document]:
    try:
        rows = READERS[kind](file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as {kind}: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file} cannot be read as {kind}: each row must be an object")
    return rows


def _read_json(file: Path) -> list[Document]:
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows: list[Document] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _read_csv(file: Path) -> list[Document]:
    """Read with pandas, as the harness does: cells that look like numbers are numbers."""
    import pandas  # type: ignore[import-untyped]

    rows = pandas.read_csv(file).to_dict("records")
    return [{str(name): _drop_nan(cell) for name, cell in row.items()} for row in rows]


def _drop_nan(cell: Any) -> Any:
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _read_parquet(file: Path) -> list[Document]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    rows: list[Document] = parquet.read_table(file).to_pylist()
    return rows


def _read_text(file: Path) -> list[Document]:
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [{"text": line} for line in lines]


READERS: Mapping[str, Callable[[Path], list[Document]]] = MappingProxyType(
    {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet, "text": _read_text}
)
"""What reads a file, by the name that `datasets` has for its format."""
