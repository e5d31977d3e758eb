"""How a mix travels: inside the LoRARequest that vLLM hands from the API process to the worker with the request.

The name is the mix's content, because vLLM keys its prefix cache by that name; the id is taken from the same hash, so that
equal mixes are one adapter to the scheduler without anybody keeping a table; the path carries the coefficients.
"""

import json
import secrets
from collections.abc import Mapping

from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient, from_json, to_json
from adapters.mix import Mix

_MIX = "tta-mix:"
_PROBE = "tta-probe:"
_ID_BITS = 62


def mix_request(mix: Mix, digests: Mapping[str, str]) -> LoRARequest | None:
    """The adapter request of a mix; None for the base, which then shares everything with plain requests."""
    if mix.is_base:
        return None
    key = mix.key(digests)
    content = {digests[name]: to_json(c) for name, c in mix.coefficients}
    return LoRARequest(f"mix-{key}", _id(int(key, 16)), _MIX + json.dumps(content, sort_keys=True))


def probe_request() -> LoRARequest:
    """A request that runs as the base while the worker collects its features. Unique, so that no cached token is skipped."""
    token = secrets.randbits(_ID_BITS)
    return LoRARequest(f"probe-{token:x}", _id(token), _PROBE)


def coefficients(request: LoRARequest) -> dict[str, Coefficient]:
    """Coefficients by expert digest, as the worker reads them; empty for a probe."""
    if is_probe(request):
        return {}
    assert request.lora_path.startswith(_MIX), f"not a mix: {request.lora_path!r}"
    return {digest: from_json(c) for digest, c in json.loads(request.lora_path.removeprefix(_MIX)).items()}


def is_probe(request: LoRARequest) -> bool:
    return bool(request.lora_path.startswith(_PROBE))


def _id(bits: int) -> int:
    # The top bit keeps these ids clear of the small ones that vLLM gives its warm-up adapters; int64 holds them.
    return (bits % (1 << _ID_BITS)) | (1 << _ID_BITS)
