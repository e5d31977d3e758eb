"""Files and folders that appear whole or not at all, whenever a process is killed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters.errors import LibraryError


def check_free(file: Path, *, replace: bool) -> None:
    """Raise LibraryError if a file is there and may not be replaced."""
    if not replace and file.exists():
        raise LibraryError(
            f"{file} is there already: choose another name, or replace it with --replace"
        )


def write_atomically(file: Path, write: Callable[[Path], object], *, replace: bool) -> None:
    """Write a file that is in its place, on the disk, when this returns.

    Args:
        write: Writes the content to the path that it is given, which is another one.
        replace: Whether a file that is there may be replaced.

    Raises LibraryError as `check_free` does, or if the disk refuses.
    """
    check_free(file, replace=replace)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".staging-", dir=file.parent) as staging:
            staged = Path(staging) / file.name
            write(staged)

            if replace:
                move_into_place(staged, file)
            else:
                sync(staged)
                file.hardlink_to(staged)  # unlike a rename it fails if another process was faster
                sync(file.parent)
    except OSError as error:
        raise LibraryError(f"{file} could not be written: {error}") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` at the end, or nothing if anything fails.

    Raises LibraryError if `folder` is there already, or if the disk refuses.
    """
    if folder.exists() or folder.is_symlink():
        raise LibraryError(f"{folder} exists; name a folder that does not")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            staged = Path(beside) / folder.name
            staged.mkdir()
            yield staged

            staged.rename(folder)
    except OSError as error:
        raise LibraryError(f"{folder} could not be written: {error}") from error


def move_into_place(staged: Path, target: Path) -> None:
    """Rename a file or folder of the same file system, and wait until that is on the disk."""
    sync(staged)
    staged.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names of the files in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
