"""How alike the experts are that are served, for operators who look at a library."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import AdapterError
from adapters.expert import Expert
from adapters.library.library import Library
from adapters.merge.interference import measure_cosines

MOST_EXPERTS = 64
MOST_NUMBERS = 1 << 28
"""Of the factors of all experts that are compared, 1 GiB in float32."""


class Kinship:
    """The cosines of all pairs of low-rank experts, computed once for each state of a library.

    Args:
        library: The folder that experts are served from.
    """

    def __init__(self, library: Path) -> None:
        self._library = library
        self._computing = asyncio.Lock()
        self._digests: dict[str, str] | None = None
        self._found: dict[str, Any] = {}

    async def find(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Return the experts that are compared, their cosines, and why others are left out.

        Args:
            digests: The digest of each expert that is served, by name.
        """
        async with self._computing:
            if self._digests != digests:
                self._found = await asyncio.to_thread(self._measure, digests)
                self._digests = dict(digests)
            return self._found

    def _measure(self, digests: Mapping[str, str]) -> dict[str, Any]:
        experts, left_out = self._read(digests)
        cosines = measure_cosines(list(experts.values()))
        rows = [[round(value, 4) for value in row] for row in cosines.tolist()]
        return {"experts": list(experts), "cosines": rows, "left_out": left_out}

    def _read(self, digests: Mapping[str, str]) -> tuple[dict[str, Expert], dict[str, str]]:
        """Return the experts that can be compared, within bounds, and why others cannot."""
        library = Library.scan(self._library)
        experts: dict[str, Expert] = {}
        left_out: dict[str, str] = {}
        room = MOST_NUMBERS
        for name in sorted(digests):
            try:
                if len(experts) == MOST_EXPERTS or room <= 0:
                    raise AdapterError("there are more experts than are compared")
                expert = library.expert(name)
                if expert.digest != digests[name]:
                    raise AdapterError("the library's folder now holds other weights")
            except AdapterError as error:
                left_out[name] = str(error)
            else:
                room -= sum(f.a.numel() + f.b.numel() for f in expert.factors.values())
                experts[name] = expert
        return experts, left_out
