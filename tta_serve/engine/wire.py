"""The messages between the API process, which takes requests, and the engine's workers.

Orders go to the workers, one with each request. An order travels inside the `LoRARequest` that vLLM
hands on with the request:

    lora_path     what the worker is to do: a `WorkerOrder`, as JSON
    lora_name     what vLLM keys its prefix cache by
    lora_int_id   a number from the same hash, by which vLLM's scheduler tells adapters apart

Of a mix that is known, the name is the hash of the mix's content and its gating, so that equal
mixes are one adapter to vLLM without anybody keeping a table. A turn whose mix is decided inside a
pass has a name of its own. A mix acts from a token on: what stands before is keyed as the base's,
or as what earlier turns ran as (`find_names`), so that all mixes share it. A probe has a name of
its own too, so that none of its tokens is read from the prefix cache, which would skip them. Where
turns stand is in the path alone. Nothing of an order is in a field of a request that a client can
fill.

Reports come back. What a pass reports of a request (`InlineDecision`, `ProbeFeatures`) is attached
to each of the request's outputs, in `kv_transfer_params`, where vLLM has room for what a cache
transfer is to know. What a probe found (`ProbeComparison`, `ProbeActivations`) is the result of a
call of the workers. `pack` and `unpack` make plain values of all four and back.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.coefficient import Coefficient, Json, from_json, to_json
from adapters.mix import Mix

ProbeKind = Literal["features", "compare", "activations"]

DenseKey = tuple[tuple[str, Coefficient], ...]
"""Digests of dense experts and their coefficients, in the order of the digests; () is the base."""

_PATH = "tta:"
_REPORT = "tta_report"
_ID_BITS = 62


EARLIER = 7
"""How many different mixes the tokens before a request's own may have run as."""


class EarlierMix(NamedTuple):
    """What an earlier part of a request's tokens ran as. It ends where the next part starts."""

    start: int
    """The part's first token."""
    name: str
    """What the prefix cache calls it."""
    mix: Mapping[str, Coefficient]
    """The coefficients, by expert digest."""
    since: int = 0
    """The token from which they are used; tokens of the part before it run as the base."""
    upper: bool = False
    """Whether layers below the one that decides run as the base."""
    gating: Gating | None = None
    """How the experts of the mix share each token."""

    @property
    def row(self) -> Hashable:
        """What equal rows of the workers' tables of coefficients share."""
        return tuple(sorted(self.mix.items())), self.upper, self.gating


class TurnBefore(NamedTuple):
    """What was decided for the turn before, which holds unless the topic has changed."""

    mix: Mapping[str, Coefficient]
    """The coefficients, by expert digest."""
    choice: str | None
    """The digest of the expert that fitted best, None for the base."""


class WorkerOrder(NamedTuple):
    """What a worker is to do with a request."""

    mix: Mapping[str, Coefficient] | None = {}
    """The coefficients of what slots serve, by expert digest, or None if they are decided inside
    the pass."""
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
    dense: DenseKey = ()
    """What must be in the weights, of dense experts."""
    acts_from: int = 0
    """The token from which the prefix cache knows the request by its adapter's name. Tokens before
    it are the base's, or as `earlier` says."""
    earlier: tuple[EarlierMix, ...] = ()
    """What tokens before `acts_from` ran as, in their order."""
    before: TurnBefore | None = None
    """What holds if the pass that decides finds the topic unchanged."""

    @property
    def used_from(self) -> int:
        """The token from which the mix is used, if it is known."""
        return max(self.since, self.acts_from)


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
    """The token from which the decision is used: the first one of the part that ended the turn, but
    none from before the mix acts."""
    kept: bool = False
    """Whether the topic is that of the turn before, whose mix is used instead."""
    several: float = -math.inf
    """The logit that the request wants several experts."""


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
    mix: Mix,
    digests: Mapping[str, str],
    gating: Gating | None = None,
    dense: Collection[str] = (),
) -> LoRARequest | None:
    """Return the adapter request of a mix that is known.

    It is None for the base, which then shares everything with plain requests.

    Args:
        mix: The mix.
        digests: The digest of each of its experts, by name.
        gating: How those of its experts that slots serve share each token.
        dense: The digests of dense experts, which are merged into the weights.
    """
    if mix.is_base:
        return None
    key = make_mix_key(mix, digests, gating)
    order = _split(write_mix(mix, digests), dense)
    return LoRARequest(f"mix-{key}", _id(int(key, 16)), _path(gating=gating, **order))


def make_mix_key(mix: Mix, digests: Mapping[str, str], gating: Gating | None = None) -> str:
    """Return the SHA-256 of a mix's content, and of its gating if it has one."""
    key = mix.key(digests)
    return hashlib.sha256(f"{key}|{gating}".encode()).hexdigest() if gating else key


def make_undecided_request(
    policy: str, gating: Gating | None = None, before: TurnBefore | None = None
) -> LoRARequest:
    """Return the request of a turn whose mix an installed policy decides.

    Args:
        policy: The policy.
        gating: How the experts of the mix share each token.
        before: What was decided for the turn before.
    """
    order: dict[str, Any] = {"policy": policy, "upper": True, "mix": None, "gating": gating}
    if before is not None:
        order["before"] = {"mix": _write(before.mix), "choice": before.choice}
    return _own("turn", **order)


def make_base_request() -> LoRARequest:
    """Return the request of a turn that the base answers after turns that had mixes.

    Without those a prompt of the base needs none.
    """
    return LoRARequest("base", _id(0), _path(mix={}))


def make_probe_request(
    kind: ProbeKind,
    mix: Mapping[str, Json] | None = None,
    skip: int = 0,
    dense: Collection[str] = (),
) -> LoRARequest:
    """Return a request that the worker observes.

    Args:
        kind: What is observed.
        mix: What it runs as, as `write_mix` writes it; None for the base.
        skip: How many of its first tokens a comparison passes over.
        dense: The digests of dense experts, which are merged into the weights.
    """
    return _own("probe", probe=kind, skip=skip, **_split(mix or {}, dense))


def _split(mix: Mapping[str, Json], dense: Collection[str]) -> dict[str, dict[str, Json]]:
    """Return what an order says of a mix: what slots do, and what is merged into the weights."""
    merged = {digest: coefficient for digest, coefficient in mix.items() if digest in dense}
    slots = {digest: coefficient for digest, coefficient in mix.items() if digest not in dense}
    return {"mix": slots, "dense": merged} if merged else {"mix": slots}


def write_mix(mix: Mix, digests: Mapping[str, str]) -> dict[str, Json]:
    """Return a mix as coefficients by expert digest."""
    return {digests[name]: to_json(c) for name, c in mix.coefficients}


def _write(mix: Mapping[str, Coefficient]) -> dict[str, Json]:
    return {digest: to_json(c) for digest, c in mix.items()}


def with_turn(request: LoRARequest, turn: tuple[int, int]) -> LoRARequest:
    """Return the same request, told which tokens [start, end) are the user's turn."""
    assert 0 <= turn[0] <= turn[1], turn
    return _extend(request, turn=turn)


def acting_from(
    request: LoRARequest, token: int, earlier: Sequence[EarlierMix] = ()
) -> LoRARequest:
    """Return the same request, acting from a token on.

    Args:
        request: One of a mix that slots serve: dense experts are in the weights of all tokens.
        token: The first token that it changes.
        earlier: What tokens before ran as, if not as the base.
    """
    order = read_order(request)
    assert not order.dense, "what is in the weights acts from the start"
    assert order.probe is None, "what is observed runs as one mix"
    starts = [part.start for part in earlier] + [token]
    assert starts == sorted(starts), starts
    assert starts[0] >= 0, starts
    parts = [part._asdict() | {"mix": _write(part.mix)} for part in earlier]
    return _extend(request, acts_from=token, earlier=parts)


def find_names(request: LoRARequest, start: int, end: int) -> list[str]:
    """Return what a block of tokens [start, end) ran as, for the prefix cache.

    The base has no name. A part that starts in the middle of the block is named with the place.
    """
    order = read_order(request)
    parts = [(part.start, part.name) for part in order.earlier]
    parts.append((order.acts_from, request.lora_name))
    ends = [first for first, _ in parts[1:]] + [end]
    return [
        name if first <= start else f"{name}@{first - start}"
        for (first, name), last in zip(parts, ends, strict=True)
        if max(first, start) < min(last, end)
    ]


def _extend(request: LoRARequest, **more: Any) -> LoRARequest:
    order = json.loads(request.lora_path.removeprefix(_PATH)) | more
    return LoRARequest(request.lora_name, request.lora_int_id, _path(**order))


def is_ours(request: LoRARequest) -> bool:
    """Return whether an adapter request is an order, and not one of vLLM's own."""
    return bool(request.lora_path.startswith(_PATH))


def read_order(request: LoRARequest) -> WorkerOrder:
    """Return what the worker is to do with a request."""
    return _parse_path(request.lora_path)


@lru_cache(1024)
def _parse_path(path: str) -> WorkerOrder:
    order = json.loads(path.removeprefix(_PATH)) if path.startswith(_PATH) else {}
    mix = order.pop("mix", {})
    gating = order.pop("gating", None)
    turn = order.pop("turn", None)
    dense = order.pop("dense", {})
    earlier = order.pop("earlier", ())
    before = order.pop("before", None)
    return WorkerOrder(
        None if mix is None else _read_mix(mix),
        gating=gating and Gating(**gating),
        turn=turn and (turn[0], turn[1]),
        dense=tuple(sorted((digest, from_json(c)) for digest, c in dense.items())),
        earlier=tuple(map(_read_earlier, earlier)),
        before=before and TurnBefore(_read_mix(before["mix"]), before["choice"]),
        **order,
    )


def _read_mix(mix: Mapping[str, Json]) -> dict[str, Coefficient]:
    return {digest: from_json(c) for digest, c in mix.items()}


def _read_earlier(part: dict[str, Any]) -> EarlierMix:
    gating = part["gating"] and Gating(**part["gating"])
    return EarlierMix(**part | {"mix": _read_mix(part["mix"]), "gating": gating})


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
