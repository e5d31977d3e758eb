"""What the library knows of one version of an expert: the file expert.json beside its weights."""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from adapters.errors import LibraryError
from adapters.forms import Form, Report

FORMS = tuple(form.name for form in get_args(Form))
MAX_FILE_BYTES = 64 * 1024**2
MAX_EXAMPLES = 1024
MAX_EXAMPLE_BYTES = 16 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Base:
    """The checkpoint that a library's experts change. source: the folder it was read from"""

    digest: str
    source: str


@dataclass(frozen=True)
class Record:
    """What a library says of itself."""

    base: Base


@dataclass(frozen=True)
class Source:
    """Where an expert came from. path: the folder that was added   parents: the digest of each expert it was made of"""

    kind: Literal["peft", "finetune", "merge", "compress", "twin"]
    path: str | None = None
    method: str | None = None
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class About:
    """What an expert's owner says of it. examples: prompts to route by   scores: of evaluations, by their names

    Raises LibraryError for more than 1024 examples, or one of more than 16 KiB.
    """

    source: Source
    licence: str | None = None
    description: str | None = None
    examples: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.examples) > MAX_EXAMPLES:
            raise LibraryError(f"{len(self.examples)} examples; an expert has at most {MAX_EXAMPLES}")
        for k, example in enumerate(self.examples, 1):
            if len(example.encode()) > MAX_EXAMPLE_BYTES:
                raise LibraryError(f"example {k} has more than {MAX_EXAMPLE_BYTES} bytes")


@dataclass(frozen=True, kw_only=True)
class Manifest(About):
    """One version of an expert.

    digest: of its content as it is on disk   base: the digest of the checkpoint that it changes, where known
    report: what the form kept of the change, the rank of each module, sizes   created: ISO 8601, UTC
    """

    name: str
    version: int
    digest: str
    base: str | None
    report: Report
    created: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise LibraryError(f"the form {self.form!r} is unknown; known are: {', '.join(FORMS)}")

    @property
    def form(self) -> str:
        """One of `FORMS`."""
        return self.report.form


def to_json(value: Any) -> str:
    """A dataclass of this file as JSON; equal values have equal texts. Raises LibraryError if it is over 64 MiB."""
    text = json.dumps(value, default=_plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_FILE_BYTES:
        raise LibraryError(f"a manifest of {len(text.encode())} bytes; at most {MAX_FILE_BYTES} are kept: shorten its texts")
    return text


def read_json(kind: type[T], file: Path) -> T:
    """The inverse of `to_json`, from a file.

    Raises LibraryError that names the file, and the key if one is unknown, missing, mistyped or there twice; and for a file
    that is missing, no JSON, or over 64 MiB.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        result: T = _read(kind, value, "it")
    except (OSError, ValueError, RecursionError) as error:
        raise LibraryError(f"{file} cannot be used: {error}") from None
    return result


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else dict(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is there twice among {reprlib.repr([key for key, _ in pairs])}")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, Mapping[str, X], tuple[X, ...], Literal, X | None, or of JSON's own types."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, where)
    if origin in (Mapping, dict) and isinstance(value, dict):
        return {key: _read(args[1], v, f"{where}.{key}") for key, v in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_read(args[0], v, f"{where}[{k}]") for k, v in enumerate(value))
    if origin is UnionType and NoneType in args and value is not None:
        return _read(args[0], value, where)
    allowed = args if origin is UnionType else (kind, int) if kind is float else (kind,)
    if not (value in args if origin is Literal else type(value) in allowed):
        raise ValueError(f"{where} must be {kind.__name__ if isinstance(kind, type) else kind}, got {reprlib.repr(value)}")
    return value


def _read_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    for key in sorted(known ^ value.keys()):
        raise ValueError(f"key {key!r} of {where} is {'missing' if key in known else 'unknown'}")
    hints = get_type_hints(kind)
    return kind(**{key: _read(hints[key], v, f"{where}.{key}") for key, v in value.items()})
