"""Which requests that pinned an expert are kept, as what the base reads in them.

Every conversation has a number, drawn by a secret hash, and of each expert those with the least
numbers are kept. That is an even sample of all conversations, in which each counts once however
many turns it has; two replicas' samples together make that of both; and nobody who does not know
the secret can choose a session's name so that it is kept.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SALT_BYTES = 16
FORMS = 2
"""How a request is read: bare, and in the chat template."""


class Bounds(NamedTuple):
    """How many requests are kept of an expert."""

    most: int
    """All together."""
    of_tenant: int
    """Of one tenant."""


class PinnedRequest(NamedTuple):
    """A request that pinned an expert."""

    digest: str
    """The expert's."""
    key: int
    """The number of its conversation."""
    tenant: int
    """The number of its tenant."""


@dataclass(frozen=True)
class PinnedRows:
    """What is kept of one expert's requests."""

    keys: Tensor
    """[requests], int64, the numbers of their conversations."""
    tenants: Tensor
    """[requests], int64, the numbers of their tenants."""
    features: Tensor
    """[requests, 2, hidden], float32, bare and in the chat template."""

    @property
    def usable(self) -> bool:
        """Whether these are rows of finite features."""
        count = len(self.features)
        return (
            self.features.dtype == torch.float32
            and self.features.dim() == 3
            and self.features.shape[1] == FORMS
            and self.keys.shape == self.tenants.shape == (count,)
            and bool(self.features.isfinite().all())
        )


class PinnedSample:
    """A bounded sample of the requests that pinned each expert, by the experts' digests.

    Args:
        salt: The secret of the hash.
    """

    def __init__(self, salt: bytes) -> None:
        self.salt = salt
        self._kept: dict[str, dict[int, tuple[int, Tensor]]] = {}

    def describe(self, digest: str, tenant: str | None, conversation: str) -> PinnedRequest:
        """Return the numbers of a request."""
        return PinnedRequest(
            digest, self._number("key", tenant, conversation), self._number("tenant", tenant)
        )

    def count(self, digest: str) -> int:
        """Return how many are kept of an expert."""
        return len(self._kept.get(digest, ()))

    def wants(self, request: PinnedRequest, bounds: Bounds) -> bool:
        """Return whether a request would be kept, if it were read."""
        kept = self._kept.get(request.digest, {})
        tenants = {key: tenant for key, (tenant, _) in kept.items()}
        if request.key in tenants:
            return False
        return request.key in choose_kept({**tenants, request.key: request.tenant}, bounds)

    def add(self, request: PinnedRequest, features: Tensor, bounds: Bounds) -> bool:
        """Keep a request, if it is one of those to keep.

        Args:
            request: Its numbers.
            features: [2, hidden], float32.
            bounds: How many are kept.

        Returns:
            Whether it is kept.
        """
        if not self.wants(request, bounds):
            return False
        kept = self._kept.setdefault(request.digest, {})
        kept[request.key] = request.tenant, features
        self._trim(request.digest, bounds)
        return True

    def merge(self, rows: Mapping[str, PinnedRows], bounds: Bounds) -> bool:
        """Keep what another sample has kept, too.

        Args:
            rows: By the expert's digest.
            bounds: How many are kept.

        Returns:
            Whether it now keeps other requests than these rows.
        """
        for digest, own in rows.items():
            found = zip(own.keys.tolist(), own.tenants.tolist(), own.features, strict=True)
            theirs = {key: (tenant, features.clone()) for key, tenant, features in found}
            self._kept[digest] = theirs | self._kept.get(digest, {})
            self._trim(digest, bounds)
        return any(
            kept.keys() != set(rows[digest].keys.tolist() if digest in rows else ())
            for digest, kept in self._kept.items()
        )

    def retain(self, digests: Collection[str]) -> bool:
        """Forget the requests of all other experts. Returns whether there were any."""
        gone = self._kept.keys() - set(digests)
        for digest in gone:
            del self._kept[digest]
        return bool(gone)

    def read(self, digest: str) -> Tensor | None:
        """Return the features of an expert's requests, [requests, 2, hidden], None without any."""
        kept = self._kept.get(digest)
        if not kept:
            return None
        return torch.stack([features for _, features in kept.values()])

    def rows(self) -> dict[str, PinnedRows]:
        """Return all that is kept, by the expert's digest."""
        return {
            digest: PinnedRows(
                torch.tensor(list(kept)),
                torch.tensor([tenant for tenant, _ in kept.values()]),
                torch.stack([features for _, features in kept.values()]),
            )
            for digest, kept in self._kept.items()
            if kept
        }

    def _trim(self, digest: str, bounds: Bounds) -> None:
        kept = self._kept[digest]
        stays = choose_kept({key: tenant for key, (tenant, _) in kept.items()}, bounds)
        self._kept[digest] = {key: kept[key] for key in sorted(stays)}

    def _number(self, *parts: str | None) -> int:
        """Return a secret number of some words, of 63 bits."""
        found = hashlib.blake2b(json.dumps(parts).encode(), key=self.salt, digest_size=8).digest()
        return int.from_bytes(found, "big") >> 1


def choose_kept(tenants: Mapping[int, int], bounds: Bounds) -> set[int]:
    """Return which requests are kept.

    Of each tenant those with the least numbers; where all are too many, the tenants with the most
    give some up.

    Args:
        tenants: By the request's number, the tenant's.
        bounds: How many are kept.
    """
    taken: Counter[int] = Counter()
    kept: set[int] = set()
    for key in sorted(tenants):
        if taken[tenants[key]] < bounds.of_tenant:
            taken[tenants[key]] += 1
            kept.add(key)
    while len(kept) > bounds.most:
        most = max(taken.values())
        last = max(key for key in kept if taken[tenants[key]] == most)
        taken[tenants[last]] -= 1
        kept.remove(last)
    return kept
