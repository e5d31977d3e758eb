"""How a mix travels: inside the LoRARequest that vLLM hands from the API process to the worker with the request.

The name is the mix's content, because vLLM keys its prefix cache by that name; the id is taken from the same hash, so that
equal mixes are one adapter to the scheduler without anybody keeping a table; the path carries the coefficients.

A probe is a request of which the worker observes something. Its name and id are its own, so that none of its tokens is read
from the prefix cache, which would skip them.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Literal, NamedTuple

from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient, Json, from_json, to_json
from adapters.mix import Mix

Kind = Literal["features", "compare", "activations"]

_MIX = "tta-mix:"
_PROBE = "tta-probe:"
_ID_BITS = 62


class Probe(NamedTuple):
    """What is wanted of a request. kind: what to observe   skip: how many of its first tokens to pass over"""

    kind: Kind
    skip: int


def mix_request(mix: Mix, digests: Mapping[str, str]) -> LoRARequest | None:
    """The adapter request of a mix; None for the base, which then shares everything with plain requests."""
    if mix.is_base:
        return None
    key = mix.key(digests)
    return LoRARequest(f"mix-{key}", _id(int(key, 16)), _MIX + json.dumps(content(mix, digests), sort_keys=True))


def probe_request(kind: Kind, mix: Mapping[str, Json] | None = None, skip: int = 0) -> LoRARequest:
    """A request that the worker observes, which runs as a mix, given by its `content`, or as the base."""
    token = secrets.randbits(_ID_BITS)
    path = _PROBE + json.dumps({"kind": kind, "skip": skip, "mix": dict(mix or {})})
    return LoRARequest(f"probe-{token:x}", _id(token), path)


def content(mix: Mix, digests: Mapping[str, str]) -> dict[str, Json]:
    """Coefficients by expert digest."""
    return {digests[name]: to_json(c) for name, c in mix.coefficients}


def coefficients(request: LoRARequest) -> dict[str, Coefficient]:
    """Coefficients by expert digest, as the worker reads them."""
    path = request.lora_path
    found = json.loads(path[len(_PROBE) :])["mix"] if is_probe(request) else json.loads(path.removeprefix(_MIX))
    return {digest: from_json(c) for digest, c in found.items()}


def is_probe(request: LoRARequest) -> bool:
    return bool(request.lora_path.startswith(_PROBE))


def probe(request: LoRARequest) -> Probe:
    """What a probe's request says is wanted of it."""
    wanted = json.loads(request.lora_path[len(_PROBE) :])
    return Probe(wanted["kind"], wanted["skip"])


def _id(bits: int) -> int:
    # The top bit keeps these ids clear of the small ones that vLLM gives its warm-up adapters; int64 holds them.
    return (bits % (1 << _ID_BITS)) | (1 << _ID_BITS)
