"""The names in a library's folder: of experts, of their versions, and of what lies beside them."""

import re
from pathlib import Path

from adapters.errors import LibraryError
from adapters.files.facts import NAME, resolve
from adapters.files.paths import name_unreadable
from adapters.library.staging import PENDING_FILE

BASE_FILE = "library.json"
MANIFEST_FILE = "expert.json"
REMOVED_FILE = "removed"
RESERVED_NAMES = frozenset({"base", "auto", "router", BASE_FILE})
_VERSION = re.compile(r"v(\d{4}|[1-9]\d{4,8})")
_REFERENCE = re.compile(r"([^@]*)@([1-9]\d{0,8})")
_VERSION_FILE = re.compile(
    rf"{re.escape(MANIFEST_FILE)}|{REMOVED_FILE}|{PENDING_FILE}|weights-\d{{5}}\.safetensors"
)
# Files that systems, editors and repositories leave beside others, and that nothing here reads.
_STRAY = re.compile(
    r"\..*|thumbs\.db|desktop\.ini|.*\.md|(licen[cs]e|notice)(\..*)?", re.IGNORECASE
)


def is_stray(name: str) -> bool:
    """Return whether a file of this name does no harm beside those of a library."""
    return bool(_STRAY.fullmatch(name))


def split_reference(reference: str) -> tuple[str, int | None]:
    """Return the name and the number of `NAME@N`, version N of an expert; None for its current one.

    Raises LibraryError if what follows the @ is no number of a version.
    """
    if "@" not in reference:
        return reference, None
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise LibraryError(
            f"{reference!r} names no version: NAME@2 is version 2 of an expert, NAME its current"
            " one"
        )
    return match[1], int(match[2])


def name_shared(prefix: str) -> str:
    """Return the name of the part that is shared."""
    return f"{prefix}-shared"


def name_exclusive(prefix: str, expert: str) -> str:
    """Return the name of an expert's exclusive part; that of sql@2 is PREFIX-sql-v2."""
    return f"{prefix}-{expert.replace('@', '-v')}"


def check_name(root: Path, name: str) -> Path:
    """Return the place of an expert in a library.

    Raises LibraryError for a name that clients could not use, or that leads out of the library.
    """
    if not NAME.fullmatch(name) or name in RESERVED_NAMES:
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise LibraryError(
            f"expert name {name!r}: letters, digits, dot, dash and underscore are allowed;"
            f" {reserved} are taken"
        )
    check_inside(root, root / name)
    return root / name


def check_inside(root: Path, path: Path) -> None:
    """Raise LibraryError if a path below a library leads out of it, links followed."""
    if not resolve(path).is_relative_to(resolve(root)):
        raise LibraryError(
            f"{path} leads out of the library {root}; copy it there instead of linking it"
        )


def read_number(path: Path) -> int | None:
    """Return the number of a version by its folder's name; None for anything else."""
    match = _VERSION.fullmatch(path.name)
    return int(match[1]) if match and path.is_dir() else None


def list_places(root: Path) -> list[str]:
    """Return the names of what a library's folder holds, in order, without hidden ones.

    Raises LibraryError if it cannot be read.
    """
    with name_unreadable(root):
        if not root.is_dir():
            return []
        return sorted(place.name for place in root.iterdir() if not place.name.startswith("."))


def is_version_file(name: str) -> bool:
    """Return whether a file of this name belongs to a version."""
    return bool(_VERSION_FILE.fullmatch(name))
