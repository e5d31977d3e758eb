"""How versions get their places in a library: all that belong together, or none of them.

What is to be placed is first written to a staging folder. Each part then moves to its place with
the file `pending` in it, which names the staging folder: as long as that folder is there, nobody
sees the part. One rename of the staging folder is what makes all parts visible at once. A process
that is killed before it leaves parts that the next writer takes back.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import LibraryError
from adapters.files.atomic import move_into_place, sync

PENDING_FILE = "pending"
PREFIX = ".staging-"
_LOCK_FILE = ".lock"
_PARTS_FILE = "parts"
_DONE = ".done"
_HOME = re.compile(rf"{re.escape(PREFIX)}[A-Za-z0-9_]+")


@dataclass(frozen=True)
class StagingArea:
    """The staging folders of a library, each of one process; several may be there at once."""

    root: Path
    """The library's folder, which need not exist yet."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from placing anything meanwhile."""
        with (self.root / _LOCK_FILE).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """Yield an empty folder of this process, which is deleted at the end with what is in it.

        Folders that killed processes left are deleted first. Raises LibraryError if the disk
        refuses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)

            # A lock on a file of its own says that a staging folder's process lives.
            with self.locked():
                for left in self.find_dead():
                    self._delete(left)
                home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.root))
                lock = (home / "lock").open("w", encoding="utf-8")
                fcntl.flock(lock, fcntl.LOCK_EX)

            try:
                yield home
            finally:
                with self.locked(), lock:
                    self._delete(home)
                    self._delete(_done(home))
        except OSError as error:
            raise LibraryError(f"library {self.root} could not be changed: {error}") from error

    def place(self, home: Path, parts: Mapping[Path, Path]) -> None:
        """Put staged folders, all of them on the disk, in their places. Called with the lock held.

        Args:
            home: The staging folder.
            parts: The place of each folder in it.
        """
        record = home / _PARTS_FILE
        places = (str(place.relative_to(self.root)) for place in parts.values())
        record.write_text("\n".join(places), encoding="utf-8")
        sync(record)
        sync(home)
        for staged, place in parts.items():
            (staged / PENDING_FILE).write_text(home.name, encoding="utf-8")
            sync(staged / PENDING_FILE)
            place.parent.mkdir(exist_ok=True)
            move_into_place(staged, place)

        # From here on all of them are there.
        move_into_place(home, _done(home))
        for place in parts.values():
            (place / PENDING_FILE).unlink()

    def find_dead(self) -> list[Path]:
        """Return the staging folders whose process is gone."""
        return [left for left in sorted(self.root.glob(f"{PREFIX}*")) if _is_dead(left)]

    def _delete(self, home: Path) -> None:
        """Delete a staging folder; what it has placed without an end is taken back before."""
        record = home / _PARTS_FILE
        if record.is_file() and not home.name.endswith(_DONE):
            for k, part in enumerate(record.read_text(encoding="utf-8").splitlines()):
                place = self.root / part
                if _read_pending(place) == home.name:
                    place.rename(home / f"withdrawn-{k}")
        if home.is_dir():
            shutil.rmtree(home)


def is_pending(place: Path) -> bool:
    """Return whether a version is one of several that are not all in their places yet."""
    home = _read_pending(place)
    return bool(_HOME.fullmatch(home)) and (place.parent.parent / home).is_dir()


def _read_pending(place: Path) -> str:
    try:
        return (place / PENDING_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""


def _done(home: Path) -> Path:
    return home.with_name(f"{home.name}{_DONE}")


def _is_dead(staging: Path) -> bool:
    try:
        with (staging / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
