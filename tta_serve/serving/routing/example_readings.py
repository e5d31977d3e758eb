"""What the base reads in the library's example prompts, kept between starts."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files.atomic import write_atomically
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Activations, Outputs, Probe, Window

logger = logging.getLogger(__name__)

CONTROLS = ("Hello", "Which of 21, 23 and 25 is a prime number?")
"""Texts that are read at every start: a file whose readings of them differ is not used."""
_TOLERANCE = 1e-3
"""By how much readings of one text may differ, in parts of their norm."""
_MOST_FILES = 8
"""How many files a folder keeps, the latest ones."""


class Read(Protocol):
    """Reads a text's features, as `router.probing.Probe.features` does."""

    async def __call__(self, text: str, *, chat: bool = False) -> Tensor: ...


class ExampleReadings:
    """The features of example prompts by text and form, as `router.probing.Probe` reads them.

    A library has hundreds of examples, each read once and in a chat template once more, and on a
    CPU that is most of a start. So they are kept, in memory while the library changes, and in a
    file for the next start.

    Args:
        file: Where they are kept, None for nowhere.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._read_anew = False

    async def open(self, read: Read, *, chat: bool) -> None:
        """Load the file, if the base reads the control texts as it did when the file was written.

        Args:
            chat: Whether to compare readings in the chat template, too.
        """
        if self._file is None:
            return
        now = {
            _key(text, form): await read(text, chat=form)
            for text in CONTROLS
            for form in ((False, True) if chat else (False,))
        }
        before = _load(self._file)
        if all(key in before and _same(before[key], value) for key, value in now.items()):
            self._known = before
        self._known |= now

    async def get(self, text: str, chat: bool, read: Read) -> Tensor:
        """Return a text's features, reading them if nobody has."""
        key = _key(text, chat)
        self._used.add(key)
        if key not in self._known:
            self._known[key] = await read(text, chat=chat)
            self._read_anew = True
        return self._known[key]

    def save(self) -> None:
        """Forget what was not asked for since the last time, and write the file if there is news.

        What the disk refuses is logged: the next start takes longer then.
        """
        controls = {_key(text, form) for text in CONTROLS for form in (False, True)}
        self._known = {k: v for k, v in self._known.items() if k in self._used | controls}
        self._used.clear()
        if self._file is None or not self._read_anew:
            return
        self._read_anew = False
        known = {key: value.contiguous() for key, value in self._known.items()}
        try:
            write_atomically(self._file, lambda file: save_file(known, file), replace=True)
            _remove_old(self._file.parent)
        except (LibraryError, OSError) as error:
            logger.warning("the next start reads all examples again: %s", error)


@dataclass(frozen=True)
class ExampleProbe:
    """A probe whose features are of example prompts: a `router.probing.Probe`."""

    probe: Probe
    readings: ExampleReadings

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        return await self.readings.get(text, chat, self.probe.features)

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        return await self.probe.compare(prompt, candidates, window)

    async def activations(self, text: str) -> Activations:
        return await self.probe.activations(text)


def find_file(folder: Path, source: Path | str, settings: Sequence[object]) -> Path:
    """Return the file of the readings of one base.

    Args:
        folder: Of all such files.
        source: The base: a folder, whose files are told apart by size and time, or a hub's name.
        settings: What else readings depend on, as JSON.
    """
    files = sorted(source.iterdir()) if isinstance(source, Path) else []
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    digest = hashlib.sha256(json.dumps([str(source), seen, *settings]).encode()).hexdigest()
    return folder / f"{digest[:32]}.safetensors"


def _key(text: str, chat: bool) -> str:
    return hashlib.sha256(json.dumps([text, chat]).encode()).hexdigest()


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).norm() <= _TOLERANCE * other.norm())


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        return {}
    except (OSError, SafetensorError) as error:
        logger.warning("%s is of no use: %s", file, error)
        return {}


def _remove_old(folder: Path) -> None:
    """Remove all but the latest files."""
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for file in files[:-_MOST_FILES]:
        file.unlink(missing_ok=True)
