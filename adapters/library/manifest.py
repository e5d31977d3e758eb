"""Manifests: what a library knows of a version of an expert, in expert.json beside its weights."""

import json
import math
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from adapters.errors import LibraryError
from adapters.files.facts import FORM_NAMES, LATER, DeltaReport
from adapters.library.names import name_shared

MAX_FILE_BYTES = 64 * 1024**2
MAX_EXAMPLES = 1024
MAX_EXAMPLE_BYTES = 16 * 1024

_TYPES = {
    "string_type": "str",
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "tuple_type": "tuple",
}
_WRONG_KEYS = {"missing": "missing", "unexpected_keyword_argument": "unknown"}

T = TypeVar("T")


@dataclass(frozen=True)
class Base:
    """The checkpoint that a library's experts change."""

    digest: str
    """That of `adapters.files.checkpoint.Checkpoint`."""
    source: str
    """The folder that it was read from."""
    layers: int | None = field(default=None, metadata=LATER)
    """How many decoder layers answer a request, where known."""
    tied: bool = field(default=True, metadata=LATER)
    """Whether its head is its embedding, or may be."""


@dataclass(frozen=True)
class LibraryRecord:
    """What a library says of itself, in library.json."""

    base: Base


@dataclass(frozen=True)
class Source:
    """Where an expert came from."""

    kind: Literal["peft", "finetune", "merge", "compress", "twin"]
    path: str | None = None
    """The folder that was added."""
    method: str | None = None
    """The merge that made it."""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Of that merge, by name."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The digest of each expert that it was made of, by name."""
    notes: tuple[str, ...] = field(default=(), metadata=LATER)
    """What was left out of it, and by which it seems made for another base; a sentence each."""


@dataclass(frozen=True)
class TwinPart:
    """What an expert is to the others that Twin-Merging made together with it."""

    role: Literal["shared", "exclusive"]
    """What all of them share, or what one expert knows beyond that."""
    prefix: str
    """With which the names of all parts begin; the shared one is called PREFIX-shared."""
    family: str
    """SHA-256 of what the parts were made of; those of another family do not belong together."""
    original: str | None = None
    """The name of the expert that an exclusive part comes from."""
    original_digest: str | None = None
    """The digest of that expert."""

    @property
    def shared(self) -> str:
        """The name of the shared part."""
        return name_shared(self.prefix)


@dataclass(frozen=True, kw_only=True)
class About:
    """What the owner of an expert says of it.

    Raises LibraryError for more than 1024 examples, or one of more than 16 KiB.
    """

    source: Source
    licence: str | None = None
    description: str | None = None
    examples: tuple[str, ...] = ()
    """Prompts that the expert is for, by which requests are routed."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Results of evaluations, by their names."""
    twin: TwinPart | None = field(default=None, metadata=LATER)
    """Which part of Twin-Merging it is, if any."""
    invocation: tuple[int, ...] = field(default=(), metadata=LATER)
    """The tokens from whose last place in a prompt on it acts; none if it acts wherever its mix
    does."""
    alone: bool = field(default=False, metadata=LATER)
    """Whether its owner lets it be used only alone: in no mix with others, and in no merge."""

    def __post_init__(self) -> None:
        if len(self.examples) > MAX_EXAMPLES:
            raise LibraryError(
                f"{len(self.examples)} examples; an expert has at most {MAX_EXAMPLES}"
            )
        for k, example in enumerate(self.examples, 1):
            if len(example.encode()) > MAX_EXAMPLE_BYTES:
                raise LibraryError(f"example {k} has more than {MAX_EXAMPLE_BYTES} bytes")


@dataclass(frozen=True, kw_only=True)
class Manifest(About):
    """What is known of one version of an expert.

    Raises LibraryError as `About` does, and for an unknown form.
    """

    name: str
    version: int
    digest: str
    """SHA-256 of its content as it is on disk."""
    base: str | None
    """The digest of the checkpoint that it changes, where known."""
    report: DeltaReport
    """What the form kept of the change, the rank of each module, and sizes."""
    created: str
    """When, ISO 8601, UTC."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORM_NAMES:
            raise LibraryError(
                f"the form {self.form!r} is unknown; known are: {', '.join(FORM_NAMES)}"
            )

    @property
    def form(self) -> str:
        """One of `FORM_NAMES`."""
        return self.report.form


def to_json(value: Any) -> str:
    """Return a dataclass as JSON; equal values have equal texts.

    Raises LibraryError if it is over 64 MiB.
    """
    text = json.dumps(
        value, default=_plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    if len(text.encode()) > MAX_FILE_BYTES:
        raise LibraryError(
            f"a manifest of {len(text.encode())} bytes; at most {MAX_FILE_BYTES} are kept: shorten"
            " its texts"
        )
    return text


def read_json(kind: type[T], file: Path) -> T:
    """Read a dataclass that `to_json` wrote, without any conversion between JSON's types.

    Raises LibraryError that names the file, and the key if one is unknown, missing, mistyped or
    there twice; and for a file that is missing, no JSON, or over 64 MiB.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        return _parse(kind, text)
    except (OSError, ValueError, RecursionError) as error:
        raise LibraryError(f"{file} cannot be used: {error}") from None


def _parse(kind: type[T], text: bytes) -> T:
    # Pydantic is silent about a key that is there twice and about numbers that are not finite, and
    # only its own parser takes JSON's arrays for tuples while it is strict: hence both.
    content = json.loads(
        text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
    )
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, kind))
    try:
        result = adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_explain(error, content)) from None
    _check_complete(result, content, "it")
    return result


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _plain(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {known.name: getattr(value, known.name) for known in fields(value)}
    return dict(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is there twice among {reprlib.repr([key for key, _ in pairs])}")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _check_complete(value: Any, content: Any, where: str) -> None:
    """Raise ValueError for a field that was left out: defaults are for callers, not for files."""
    if not is_dataclass(value):
        return
    for known in fields(value):
        if known.name not in content:
            if known.metadata.get("later"):
                continue
            raise ValueError(f"key {known.name!r} of {where} is missing")
        part = content[known.name]
        _check_complete(getattr(value, known.name), part, f"{where}.{known.name}")


def _explain(error: ValidationError, content: Any) -> str:
    """Say what is wrong with the first value that is wrong, and where it is in the content."""
    first = error.errors(include_url=False)[0]
    kind, keys = first["type"], list(first["loc"])
    if kind == "value_error":
        return str(first["ctx"]["error"])
    if kind in _WRONG_KEYS:
        return f"key {keys.pop()!r} of {_follow(keys, content)} is {_WRONG_KEYS[kind]}"

    class_name = first.get("ctx", {}).get("class_name")
    wanted = class_name or _TYPES.get(kind) or first["msg"].removeprefix("Input should be ")
    return f"{_follow(keys, content)} must be {wanted}, got {reprlib.repr(first['input'])}"


def _follow(keys: Sequence[int | str], content: Any) -> str:
    """Return where keys lead in the content; of a union's member, which ends them, nothing."""
    where = "it"
    for key in keys:
        if isinstance(key, int):
            where += f"[{key}]"
        elif isinstance(content, dict) and key in content:
            where += f".{key}"
        else:
            break
        content = content[key]
    return where
