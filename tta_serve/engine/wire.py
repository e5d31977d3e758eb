"""How a mix travels: inside the LoRARequest that vLLM hands from the API process to the worker with the request.

The path says what the worker is to do. The name is what vLLM keys its prefix cache by. Of a mix that is known it is the mix's
content and its gating. A conversation whose mix is decided in the pass itself has a name of its own; its later turns carry
that name, their mix, and since which token it was used. The id is taken from the same hash, so that equal mixes are one
adapter to the scheduler without anybody keeping a table.

A probe is a request of which the worker observes something. Its name and id are its own, so that none of its tokens is read
from the prefix cache, which would skip them.

Which tokens are a user's turn stands in the path too, so that two turns of one conversation have one name and two paths.
Nothing of it is in the fields of a request that a client can fill. What the pass said of a request comes back with every one
of its outputs, where vLLM has room for what a cache's transfer is to know.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient, Json, from_json, to_json
from adapters.gating import Gating
from adapters.mix import Mix

Said = dict[str, Any]
Kind = Literal["features", "compare", "activations"]

_PATH = "tta:"
SAID = "tta_said"
_ID_BITS = 62


class Wanted(NamedTuple):
    """What a worker is to do with a request.

    mix: coefficients by expert digest, None if it is decided in the pass   policy: the one that decides, or says what it would
    upper: whether layers below the one that decides are the base's   since: the token from which the mix is used, before it
    the base is   probe: what to observe   skip: how many of its first tokens a comparison passes over
    gating: how the experts of the mix share each token, instead of by their coefficients
    turn: the user's, the tokens [start, end) of the prompt, to be read in the pass
    """

    mix: Mapping[str, Coefficient] | None = {}
    policy: str | None = None
    upper: bool = False
    since: int = 0
    probe: Kind | None = None
    skip: int = 0
    gating: Gating | None = None
    turn: tuple[int, int] | None = None


def mix_request(mix: Mix, digests: Mapping[str, str], gating: Gating | None = None) -> LoRARequest | None:
    """The adapter request of a mix; None for the base, which then shares everything with plain requests."""
    if mix.is_base:
        return None
    key = mix_key(mix, digests, gating)
    return LoRARequest(f"mix-{key}", _id(int(key, 16)), _path(mix=content(mix, digests), gating=gating))


def mix_key(mix: Mix, digests: Mapping[str, str], gating: Gating | None = None) -> str:
    """SHA-256 of the mix's content, and of its gating if it has one."""
    key = mix.key(digests)
    return hashlib.sha256(f"{key}|{gating}".encode()).hexdigest() if gating else key


def undecided_request(policy: str, gating: Gating | None = None) -> LoRARequest:
    """The first turn of a conversation, whose mix an installed policy decides."""
    return _own("turns", policy=policy, upper=True, mix=None, gating=gating)


def conversation_request(
    name: str | None, mix: Mapping[str, Json], since: int = 0, policy: str | None = None, gating: Gating | None = None
) -> LoRARequest:
    """A turn of a conversation that has this mix, by its `content`, since a token of it.

    name: of the conversation's first request, None for a new one   policy: which is to score this turn
    """
    wanted = {"mix": dict(mix), "since": since, "policy": policy, "upper": True, "gating": gating}
    if name is None:
        return _own("turns", **wanted)
    return LoRARequest(name, _id(int(name.partition("-")[2], 16)), _path(**wanted))


def probe_request(kind: Kind, mix: Mapping[str, Json] | None = None, skip: int = 0) -> LoRARequest:
    """A request that the worker observes, which runs as a mix, given by its `content`, or as the base."""
    return _own("probe", probe=kind, skip=skip, mix=dict(mix or {}))


def content(mix: Mix, digests: Mapping[str, str]) -> dict[str, Json]:
    """Coefficients by expert digest."""
    return {digests[name]: to_json(c) for name, c in mix.coefficients}


def wanted(request: LoRARequest) -> Wanted:
    """What the worker is to do with a request."""
    return _read(request.lora_path)


def with_turn(request: LoRARequest, turn: tuple[int, int]) -> LoRARequest:
    """The same request, whose tokens [start, end) are the user's turn, to be read in the pass."""
    assert 0 <= turn[0] <= turn[1], turn
    said = json.loads(request.lora_path.removeprefix(_PATH)) | {"turn": turn}
    return LoRARequest(request.lora_name, request.lora_int_id, _PATH + json.dumps(said, sort_keys=True))


def said_of(output: Any) -> Said | None:
    """Take what the pass said of a request from one of its outputs, which vLLM would hand on to the client."""
    if output.kv_transfer_params is None:
        return None
    said: Said | None = output.kv_transfer_params.pop(SAID, None)
    output.kv_transfer_params = output.kv_transfer_params or None
    return said


@lru_cache(1024)
def _read(path: str) -> Wanted:
    said = json.loads(path.removeprefix(_PATH)) if path.startswith(_PATH) else {}
    mix, gating, turn = said.pop("mix", {}), said.pop("gating", None), said.pop("turn", None)
    known = mix if mix is None else {digest: from_json(c) for digest, c in mix.items()}
    return Wanted(known, gating=gating and Gating(**gating), turn=turn and (turn[0], turn[1]), **said)


def _path(**wanted: Any) -> str:
    return _PATH + json.dumps(wanted, sort_keys=True, default=asdict)


def _own(kind: str, **wanted: Any) -> LoRARequest:
    token = secrets.randbits(_ID_BITS)
    return LoRARequest(f"{kind}-{token:x}", _id(token), _path(**wanted))


def _id(bits: int) -> int:
    # The top bit keeps these ids clear of the small ones that vLLM gives its warm-up adapters; int64 holds them.
    return (bits % (1 << _ID_BITS)) | (1 << _ID_BITS)
