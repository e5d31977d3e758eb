"""The messages between the API process, which takes requests, and the engine's workers.

Orders go to the workers, one with each request. An order travels inside the `LoRARequest` that vLLM
hands on with the request:

    lora_path     what the worker is to do: a `WorkerOrder`, as JSON
    lora_name     what vLLM keys its prefix cache by
    lora_int_id   a number from the same hash, by which vLLM's scheduler tells adapters apart

Of a mix that is known, the name is the hash of the mix's content and its gating, so that equal
mixes are one adapter to vLLM without anybody keeping a table. A conversation whose mix is decided
inside a pass has a name of its own; its later turns carry that name, their mix, and the token from
which it is used. A probe has a name of its own too, so that none of its tokens is read from the
prefix cache, which would skip them. Which tokens are a user's turn stands in the path alone, so
that two turns of one conversation have one name and two paths. Nothing of an order is in a field of
a request that a client can fill.

Reports come back. What a pass reports of a request (`InlineDecision`, `ProbeFeatures`) is attached
to each of the request's outputs, in `kv_transfer_params`, where vLLM has room for what a cache
transfer is to know. What a probe found (`ProbeComparison`, `ProbeActivations`) is the result of a
call of the workers. `pack` and `unpack` make plain values of all four and back.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.coefficient import Coefficient, Json, from_json, to_json
from adapters.mix import Mix

ProbeKind = Literal["features", "compare", "activations"]

_PATH = "tta:"
_REPORT = "tta_report"
_ID_BITS = 62


class WorkerOrder(NamedTuple):
    """What a worker is to do with a request."""

    mix: Mapping[str, Coefficient] | None = {}
    """The coefficients by expert digest, or None if they are decided inside the pass."""
    policy: str | None = None
    """The installed policy that decides the mix, or that says what it would decide."""
    upper: bool = False
    """Whether layers below the one that decides run as the base."""
    since: int = 0
    """The token from which the mix is used; tokens before it run as the base."""
    probe: ProbeKind | None = None
    """What to observe of the request."""
    skip: int = 0
    """How many of the request's first tokens a comparison passes over."""
    gating: Gating | None = None
    """How the experts of the mix share each token, instead of by their coefficients."""
    turn: tuple[int, int] | None = None
    """The tokens [start, end) of the prompt that are the user's turn, to be read in the pass."""


@dataclass(frozen=True)
class InlineDecision:
    """What a policy decided, or would decide, when a pass had read the whole of a user's turn."""

    head: int
    """Which of the policy's heads was used."""
    scores: Sequence[float]
    """The score of each expert, in the order of the head's names."""
    floor: float
    """The score that an expert must reach."""
    units: Sequence[int]
    """The coefficient of each expert, in steps of the policy's grid."""
    since: int
    """The token from which the decision is used: the first one of the part that ended the turn."""


@dataclass(frozen=True)
class ProbeFeatures:
    """What a pass read of a turn, where no policy was asked for."""

    features: Sequence[float]
    """[hidden], the mean over the turn's tokens of the tapped layer's input."""


@dataclass(frozen=True)
class ProbeComparison:
    """How next-token distributions of the base and of candidate mixes differ.

    Each number is a mean over positions. The fields are those of `router.probing.Outputs`.
    """

    js: Sequence[float]
    """[candidates], the Jensen-Shannon divergence from the base."""
    entropy: Sequence[float]
    """[1 + candidates], the base first."""
    nll: Sequence[float]
    """[1 + candidates], the negative log-likelihood of the tokens that follow, the base first."""
    positions: int
    """How many positions were compared."""


@dataclass(frozen=True)
class ProbeActivations:
    """How much of the base's states lies in what each expert reads.

    The fields are those of `router.probing.Activations`; each table is [experts, sites].
    """

    experts: Sequence[str]
    """The digests of all resident experts."""
    sites: Sequence[str]
    """The names of the linear layers whose inputs were observed."""
    arrow: Sequence[Sequence[float]]
    spectr: Sequence[Sequence[float]]
    norm: Sequence[Sequence[float]]
    residual: Sequence[Sequence[float]]
    inputs: Sequence[float]
    """[sites], the mean norm of the inputs."""


PassReport = InlineDecision | ProbeFeatures
ProbeResult = ProbeComparison | ProbeActivations
Report = PassReport | ProbeResult

_KINDS: tuple[type[Report], ...] = (
    InlineDecision,
    ProbeFeatures,
    ProbeComparison,
    ProbeActivations,
)
_KIND_BY_NAME = {kind.__name__: kind for kind in _KINDS}


# Orders


def make_mix_request(
    mix: Mix, digests: Mapping[str, str], gating: Gating | None = None
) -> LoRARequest | None:
    """Return the adapter request of a mix that is known.

    It is None for the base, which then shares everything with plain requests.
    """
    if mix.is_base:
        return None
    key = make_mix_key(mix, digests, gating)
    return LoRARequest(
        f"mix-{key}", _id(int(key, 16)), _path(mix=write_mix(mix, digests), gating=gating)
    )


def make_mix_key(mix: Mix, digests: Mapping[str, str], gating: Gating | None = None) -> str:
    """Return the SHA-256 of a mix's content, and of its gating if it has one."""
    key = mix.key(digests)
    return hashlib.sha256(f"{key}|{gating}".encode()).hexdigest() if gating else key


def make_undecided_request(policy: str, gating: Gating | None = None) -> LoRARequest:
    """Return the request of a conversation's first turn, whose mix an installed policy decides."""
    return _own("turns", policy=policy, upper=True, mix=None, gating=gating)


def make_conversation_request(
    name: str | None,
    mix: Mapping[str, Json],
    since: int = 0,
    policy: str | None = None,
    gating: Gating | None = None,
) -> LoRARequest:
    """Return the request of a turn whose conversation has a mix since one of its tokens.

    Args:
        name: The adapter name of the conversation's first request, None for a new conversation.
        mix: The mix, as `write_mix` writes it.
        since: The token from which the mix is used.
        policy: The policy that is to score this turn.
        gating: How the experts of the mix share each token.
    """
    order = {"mix": dict(mix), "since": since, "policy": policy, "upper": True, "gating": gating}
    if name is None:
        return _own("turns", **order)
    return LoRARequest(name, _id(int(name.partition("-")[2], 16)), _path(**order))


def make_probe_request(
    kind: ProbeKind, mix: Mapping[str, Json] | None = None, skip: int = 0
) -> LoRARequest:
    """Return a request that the worker observes.

    Args:
        kind: What is observed.
        mix: What it runs as, as `write_mix` writes it; None for the base.
        skip: How many of its first tokens a comparison passes over.
    """
    return _own("probe", probe=kind, skip=skip, mix=dict(mix or {}))


def write_mix(mix: Mix, digests: Mapping[str, str]) -> dict[str, Json]:
    """Return a mix as coefficients by expert digest."""
    return {digests[name]: to_json(c) for name, c in mix.coefficients}


def with_turn(request: LoRARequest, turn: tuple[int, int]) -> LoRARequest:
    """Return the same request, told which tokens [start, end) are the user's turn."""
    assert 0 <= turn[0] <= turn[1], turn
    order = json.loads(request.lora_path.removeprefix(_PATH)) | {"turn": turn}
    return LoRARequest(
        request.lora_name, request.lora_int_id, _PATH + json.dumps(order, sort_keys=True)
    )


def read_order(request: LoRARequest) -> WorkerOrder:
    """Return what the worker is to do with a request."""
    return _parse_path(request.lora_path)


@lru_cache(1024)
def _parse_path(path: str) -> WorkerOrder:
    order = json.loads(path.removeprefix(_PATH)) if path.startswith(_PATH) else {}
    mix = order.pop("mix", {})
    gating = order.pop("gating", None)
    turn = order.pop("turn", None)
    return WorkerOrder(
        mix if mix is None else {digest: from_json(c) for digest, c in mix.items()},
        gating=gating and Gating(**gating),
        turn=turn and (turn[0], turn[1]),
        **order,
    )


def _path(**order: Any) -> str:
    return _PATH + json.dumps(order, sort_keys=True, default=asdict)


def _own(kind: str, **order: Any) -> LoRARequest:
    """Return a request under a name that no other has."""
    token = secrets.randbits(_ID_BITS)
    return LoRARequest(f"{kind}-{token:x}", _id(token), _path(**order))


def _id(bits: int) -> int:
    # The top bit keeps these ids clear of the small ones that vLLM gives its warm-up adapters;
    # int64 holds them.
    return (bits % (1 << _ID_BITS)) | (1 << _ID_BITS)


# Reports


def pack(report: Report) -> dict[str, Any]:
    """Return a report as plain values, as every serialiser between vLLM's processes takes them."""
    return {"kind": type(report).__name__, **vars(report)}


def unpack(packed: Mapping[str, Any]) -> Report:
    """Return the report that `pack` wrote."""
    fields = dict(packed)
    return _KIND_BY_NAME[fields.pop("kind")](**fields)


def attach_report(output: Any, report: PassReport) -> None:
    """Put a pass's report of a request into one of the outputs that vLLM's scheduler sends."""
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), _REPORT: pack(report)}


def take_report(output: Any) -> PassReport | None:
    """Take the pass's report of a request out of one of its outputs.

    vLLM would hand on to the client what is left there.
    """
    if output.kv_transfer_params is None:
        return None
    packed = output.kv_transfer_params.pop(_REPORT, None)
    output.kv_transfer_params = output.kv_transfer_params or None
    if packed is None:
        return None

    report = unpack(packed)
    assert isinstance(report, PassReport)
    return report


def take_decision(output: Any) -> InlineDecision | None:
    """Take the decision out of an output of a request that asked a policy."""
    report = take_report(output)
    assert report is None or isinstance(report, InlineDecision)
    return report


def take_features(output: Any) -> ProbeFeatures | None:
    """Take the features out of an output of a probe for them."""
    report = take_report(output)
    assert report is None or isinstance(report, ProbeFeatures)
    return report
