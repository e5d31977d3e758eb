"""The journal of a search: every candidate that was scored, one JSON object a line.

The first line says which search it is. A search that begins again with the same settings asks for
the same candidates, finds their scores here, and goes on where it was ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tta_serve.search.errors import SearchError

FILE = "journal.jsonl"
Scores = dict[tuple[str, int], float]
"""By the mix as JSON and the question's number."""


@dataclass
class SearchJournal:
    """What was scored, in a file that grows."""

    file: Path
    """Where it is kept."""
    known: Scores = field(default_factory=dict)
    """What it held when it was opened."""
    seconds: float = 0.0
    """How long the search had run by then."""

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> SearchJournal:
        """Open the journal of a folder, or begin one.

        Raises:
            SearchError: It is of a search with other settings, or no journal.
        """
        journal = cls(folder / FILE)
        folder.mkdir(parents=True, exist_ok=True)
        head = json.loads(json.dumps(settings))
        if not journal.file.exists():
            journal._write(head)
            return journal
        whole = journal._read_whole_lines()
        if not whole:
            journal._write(head)
        elif other := _list_differences(whole[0], head):
            raise SearchError(
                f"{journal.file} is of another search, whose {', '.join(other)} was another;"
                " give another --out, or delete the file"
            )
        for row in whole[1:]:
            journal._take(row)
        return journal

    def add(self, mix: str, scores: Mapping[int, float], seconds: float) -> None:
        """Append the scores of a mix."""
        row = {"mix": json.loads(mix), "scores": scores, "seconds": round(seconds, 3)}
        self._write(row)

    def _write(self, row: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read_whole_lines(self) -> list[dict[str, Any]]:
        """Return all rows; what was being written when the search was ended is cut off."""
        text = self.file.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < len(text):
            with self.file.open("r+b") as file:
                file.truncate(end)
        try:
            rows = [json.loads(line) for line in text[:end].splitlines()]
        except ValueError:
            rows = [None]
        if not all(isinstance(row, dict) for row in rows):
            raise SearchError(f"{self.file} is no journal of a search; give another --out")
        return rows

    def _take(self, row: Mapping[str, Any]) -> None:
        try:
            mix = json.dumps(row["mix"], sort_keys=True)
            scores = {(mix, int(n)): float(score) for n, score in row["scores"].items()}
            self.seconds = max(self.seconds, float(row["seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SearchError(f"{self.file} is damaged; delete it, or give another --out") from None
        self.known |= scores


def _list_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
