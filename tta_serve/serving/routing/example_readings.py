"""What the engine reads in the library's example prompts, kept between starts."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files.atomic import write_atomically
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Activations, Outputs, Window
from tta_serve.serving.routing.probe_cache import ViewProbe

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""By how much two readings of one text may differ, in parts of the norm of all their numbers."""
MOST_READINGS = 4096
"""How many readings are kept, if the library at hand has no more: those of others, as of another
config with the same base, go first."""
_MOST_FILES = 8
"""How many files a folder keeps, the latest ones."""

_T = TypeVar("_T", Tensor, Outputs, Activations)
_Reading: TypeAlias = dict[str, Any]
"""A reading in parts, by name: what a file keeps of it. Those that are no tensors are JSON."""


class ExampleReadings:
    """What a probe has found in example prompts, by what it was asked.

    A library has hundreds of examples. The base reads each, in a chat template once more, and
    policies compare experts on some of them: on a CPU that is most of a start. So all is kept, in
    memory while the library changes, and in a file for the next start. The first reading of each
    kind that a file has is made anew, and if it differs the file's readings of that kind are not
    used.

    Args:
        file: Where they are kept, None for nowhere.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known = {} if file is None else _load(file)
        self._unchecked = {_kind_of(key) for key in self._known}
        self._checking = asyncio.Lock()
        self._used: set[str] = set()
        self._read_anew = False

    async def get(
        self, kind: str, form: type[_T], asked: object, read: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Return a reading, making it if nobody has.

        Args:
            kind: The name of what is read, by which readings are checked.
            form: What a reading of that kind is.
            asked: What describes it completely, as JSON.
            read: Reads it.
        """
        key = f"{kind}/{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}"
        self._used.add(key)
        if kind in self._unchecked and key in self._known:
            await self._check(kind, key, read)
        if key not in self._known:
            self._known[key] = _take_apart(await read())
            self._read_anew = True
        return _put_together(form, self._known[key])

    async def _check(self, kind: str, key: str, read: Callable[[], Awaitable[_T]]) -> None:
        """Make one reading of the file anew, and forget those of its kind if it differs."""
        async with self._checking:
            if kind not in self._unchecked:
                return
            now = _take_apart(await read())
            if not _agree(self._known[key], now):
                self._known = {k: one for k, one in self._known.items() if _kind_of(k) != kind}
                self._read_anew = True
            self._known[key] = now
            self._unchecked.discard(kind)

    def save(self) -> None:
        """Forget what is too much, of what was not asked for since the last time.

        If there is news the file is written. What the disk refuses is logged: the next start takes
        longer then.
        """
        unused = [key for key in self._known if key not in self._used]
        for key in unused[: max(0, len(self._known) - MOST_READINGS)]:
            del self._known[key]
        self._used.clear()
        if self._file is None or not self._read_anew:
            return
        self._read_anew = False
        tensors, rest = _flatten(self._known)
        try:
            write_atomically(
                self._file, lambda file: save_file(tensors, file, metadata=rest), replace=True
            )
            _remove_old(self._file.parent)
        except (LibraryError, OSError) as error:
            logger.warning("the next start reads all examples again: %s", error)


@dataclass(frozen=True)
class ExampleProbe:
    """What a view's probe finds in example prompts: a `router.probing.Probe`."""

    probe: ViewProbe
    readings: ExampleReadings

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        return await self.readings.get(
            # Apart, as the chat template may change and the base not.
            "chat" if chat else "features",
            Tensor,
            text,
            lambda: self.probe.features(text, chat=chat),
        )

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        return await self.readings.get(
            "comparisons",
            Outputs,
            self.probe.describe_comparison(prompt, candidates, window),
            lambda: self.probe.compare(prompt, candidates, window),
        )

    async def activations(self, text: str) -> Activations:
        return await self.readings.get(
            "activations",
            Activations,
            [text, sorted(self.probe.digests.items())],
            lambda: self.probe.activations(text),
        )


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


def _kind_of(key: str) -> str:
    return key.partition("/")[0]


def _take_apart(value: Tensor | Outputs | Activations) -> _Reading:
    return {"value": value} if isinstance(value, Tensor) else vars(value)


def _put_together(form: type[_T], parts: _Reading) -> _T:
    return parts["value"] if form is Tensor else form(**parts)


def _agree(before: _Reading, now: _Reading) -> bool:
    """Return whether two readings are the same but for rounding."""
    if before.keys() != now.keys():
        return False
    pairs = [(before[name], value) for name, value in now.items()]
    tensors = [(old, new) for old, new in pairs if isinstance(new, Tensor)]
    if any(type(old) is not type(new) for old, new in pairs):
        return False
    if any(old != new for old, new in pairs if not isinstance(new, Tensor)):
        return False
    if any(old.shape != new.shape or not old.isnan().equal(new.isnan()) for old, new in tensors):
        return False
    change = sum(float((old - new).nan_to_num().norm()) ** 2 for old, new in tensors)
    size = sum(float(new.nan_to_num().norm()) ** 2 for _, new in tensors)
    return change <= _TOLERANCE**2 * size


def _flatten(known: Mapping[str, _Reading]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of all readings, and by reading, in JSON, what is no tensor."""
    tensors, rest = {}, {}
    for key, parts in known.items():
        for name, value in parts.items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.clone(memory_format=torch.contiguous_format)
        rest[key] = json.dumps({k: v for k, v in parts.items() if not isinstance(v, Tensor)})
    return tensors, rest


def _load(file: Path) -> dict[str, _Reading]:
    try:
        with safe_open(file, "pt") as opened:
            known = {key: _read_rest(said) for key, said in (opened.metadata() or {}).items()}
            places = opened.keys()
            for place in places:
                key, _, name = place.rpartition("/")
                known[key][name] = opened.get_tensor(place)
    except FileNotFoundError:
        return {}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        logger.warning("%s is of no use: %s", file, error)
        return {}
    return known


def _read_rest(said: str) -> _Reading:
    """Return what is no tensor in a reading: JSON has lists where readings have tuples."""
    rest = json.loads(said)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in rest.items()}


def _remove_old(folder: Path) -> None:
    """Remove all but the latest files."""
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for file in files[:-_MOST_FILES]:
        file.unlink(missing_ok=True)
