"""The sections of a server's config, checked as a whole."""

import ipaddress
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from adapters.coefficient import Coefficient
from adapters.library.names import name_exclusive, name_shared
from router.errors import RouterError
from router.policies.selector import InlineSelector
from router.policies.selectors import SELECTORS
from router.policy import CoefficientField, Policy
from router.registry import check_options, find_policy_class
from tta_serve.config.access import AccessConfig, TenantConfig
from tta_serve.config.section import Section
from tta_serve.config.telemetry import LogConfig, TracesConfig
from tta_serve.engine.options import MOST_POLICIES_WITHIN, Capacity, DenseOptions
from tta_serve.store.options import StoreOptions

_OURS = "tta-serve sets it itself"
_NOT_ENGINE_ARGS = {
    "model": "it is model.source",
    "served_model_name": "it is model.id",
    "dtype": "it is model.dtype",
    "max_model_len": "it is model.max_model_len",
    "tensor_parallel_size": "it is model.tensor_parallel",
    "max_num_seqs": "it is server.slots",
    "enable_lora": _OURS,
    "max_loras": _OURS,
    "max_cpu_loras": _OURS,
    "max_lora_rank": _OURS,
    "lora_modules": "experts come from library.path",
    "default_mm_loras": "experts come from library.path",
    "fully_sharded_loras": _OURS,
    "additional_config": _OURS,
    "worker_extension_cls": _OURS,
    "scheduler_cls": _OURS,
    "disable_log_stats": "/metrics needs them",
    "chat_template": "it is model.chat_template",
    "tool_call_parser": "it is model.tool_parser",
    "enable_auto_tool_choice": "it is model.tool_parser",
    "reasoning_parser": "it is model.reasoning_parser",
    "api_key": "vLLM's own keys are not asked for",
    "allowed_origins": "it is server.cors_origins",
    "middleware": _OURS,
    "pipeline_parallel_size": "a mix is decided in one process of a stage",
    "data_parallel_size": "it is server.replicas",
    "otlp_traces_endpoint": "it is server.traces.endpoint",
    "enable_prompt_embeds": "a prompt without tokens cannot be routed",
}
_AROUND = ("gated", "twin")  # policies that decide as their selector does
_CONNECTORS = ("OffloadingConnector", "SimpleCPUOffloadConnector")


class ModelConfig(Section):
    """The base model, and how vLLM runs it."""

    id: str = Field(pattern=r"^[^:\s]+$")
    """The name that clients use."""
    source: str
    """A folder or a Hugging Face id."""
    dtype: str | None = None
    """Of the weights, as vLLM names it; unset, float32 on a CPU, else what the base says."""
    max_model_len: int | None = Field(None, ge=16)
    """Tokens of a prompt and its answer together; unset, what the base says."""
    tensor_parallel: int = Field(1, ge=1)
    """Over how many GPUs, or processes on a CPU, the weights are split."""
    kv_cache_gib: int = Field(1, ge=1)
    """GiB of keys and values that a CPU keeps; on a GPU vLLM takes what is free."""
    tool_parser: str | None = None
    """How vLLM reads tool calls out of the base's answers, by vLLM's name.

    With one, clients may leave the choice of tools to the base.
    """
    reasoning_parser: str | None = None
    """How vLLM reads reasoning out of the base's answers, by vLLM's name."""
    chat_template: Path | None = None
    """A file whose template replaces the base's own."""
    engine_args: dict[str, Any] = {}
    """Passed on to vLLM as they are."""

    @field_validator("engine_args")
    @classmethod
    def _keeps_promises(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in _NOT_ENGINE_ARGS:
                raise ValueError(f"{name}: {_NOT_ENGINE_ARGS[name]}")
        connector = (value.get("kv_transfer_config") or {}).get("kv_connector")
        if "kv_transfer_config" in value and connector not in _CONNECTORS:
            raise ValueError(
                f"kv_transfer_config: the connector {connector!r} may hand one mix's cache to"
                f" another; these key it by mix: {', '.join(_CONNECTORS)}"
            )
        return value


class _TwinEntry(Section):
    """An entry of Twin-Merging's parts, by the experts that they were made of."""

    twin: str
    """What the parts' names begin with."""
    weights: dict[str, CoefficientField] = {}
    """How much of each expert's own is added, by the expert's name."""

    def name_parts(self) -> dict[str, Coefficient]:
        """Return the coefficient of each part."""
        own = {name_exclusive(self.twin, name): c for name, c in self.weights.items()}
        return {name_shared(self.twin): 1.0, **own}


def _read_entry(value: Any, read_coefficients: ValidatorFunctionWrapHandler) -> Any:
    """Return the coefficients of an entry in either form; an expert called twin has a number."""
    if isinstance(value, dict) and isinstance(value.get("twin"), str):
        return _TwinEntry.model_validate(value).name_parts()
    return read_coefficients(value)


EntryField = Annotated[dict[str, CoefficientField], WrapValidator(_read_entry)]


def _default_readings() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "tta-serve" / "readings"


class PinnedConfig(Section):
    """What is kept of requests that pin one expert, as examples of what that expert is for.

    That is what the base's early layers make of the user's turn, never its text.
    """

    most: int = Field(64, ge=8, le=1024)
    """So many are kept of each expert, an even sample of all; a conversation counts once."""
    tenant_share: float = Field(0.25, gt=0, le=1)
    """The largest share of them that may be one tenant's, where the keys are of several."""


class LibraryConfig(Section):
    """The experts, and the mixes that have names."""

    path: Path
    """A folder of experts: PEFT adapters, and what `tta experts` stores."""
    everyday: Path | None = None
    """A file of prompts that no expert should answer, one a line."""
    entries: dict[str, EntryField] = {}
    """Mixes by their names: the coefficient of each expert; or `twin: PREFIX`, which is the shared
    part of Twin-Merging, with `weights` of the experts whose own parts are added to it."""
    licences: list[str] | None = None
    """The licences under which experts are served, by the names that their manifests state, such as
    `cc-by-*`; `unstated` lets those in that state none. Unset, all. Others are left out."""
    readings: Path | None = Field(default_factory=_default_readings)
    """The folder that keeps what the engine reads in example prompts, so that the next start need
    not read them again; null for nowhere. By default in the user's cache folder."""
    pinned: PinnedConfig | None = None
    """Keeps what the base reads in requests that pin one expert (`model: "smollm2:sql"`), in memory
    and in `pinned.safetensors` in the library's folder `router`, so that `retrieval` chooses
    experts without example prompts by it. Unset, nothing is kept; `{}` keeps by the defaults."""
    capacity: Capacity = Capacity()
    """How much room there is for experts."""
    dense: DenseOptions | None = None
    """How experts of the dense form are served. Without it a server that starts with some serves
    them by the defaults, and one that starts with none takes none while it runs."""


class MixConfig(Section):
    """What the coefficients of a mix may be."""

    grid: float = Field(0.05, gt=0, le=1)
    """Coefficients are rounded to multiples of it, so that nearly equal mixes share a cache."""
    max_experts: int = Field(4, ge=1)
    """The most experts of one mix, besides the shared ones of Twin-Merging."""
    minimum: float = -2.0
    """The least that a coefficient may be."""
    maximum: float = 2.0
    """The most that a coefficient may be."""
    acts_from: Literal["start", "user_turn"] | None = None
    """Where mixes begin to act, if a request does not say so: at the first token, or at the first
    user turn, so that system prompts are the base's and shared by all. Unset, the latter where a
    policy decides inside the pass."""


class PolicyConfig(Section):
    """A routing policy under a name of its own."""

    type: str
    """One of the kinds in `router.registry`."""
    deadline_s: float = Field(5.0, gt=0)
    """Seconds that a decision may take."""
    fallback: str = "base"
    """The policy that decides when this one is late."""
    inline: bool = False
    """Decide inside the pass that answers, with no pass before it."""
    options: dict[str, Any] = {}
    """Those of its kind; an unknown one is an error."""


class AutoscalingConfig(Section):
    """How many replicas there are, by how much they have to do."""

    min_replicas: int = Field(1, ge=1)
    """The fewest."""
    max_replicas: int = Field(ge=1)
    """The most."""
    target_requests: float | None = Field(None, gt=0)
    """Requests of one replica, running and waiting, that are wanted; unset, as many as `slots`."""
    target_cache: float | None = Field(None, gt=0, le=1)
    """The share of a replica's cache that requests may hold; unset, it does not count."""
    up_delay_s: float = Field(30, ge=0)
    """Seconds that more must be wanted before more are started."""
    down_delay_s: float = Field(600, ge=0)
    """Seconds that fewer must be wanted before some end."""

    @model_validator(mode="after")
    def _leaves_room(self) -> "AutoscalingConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        return self


class ServerConfig(Section):
    """The HTTP server and its bounds."""

    host: str = "127.0.0.1"
    """Where to listen; other machines are let in with keys alone."""
    port: int = Field(8000, ge=1, le=65535)
    """The port to listen on."""
    admin_port: int | None = Field(None, ge=1, le=65535)
    """A port of its own for management, which the other then answers no more; unset, both share
    one."""
    admin_host: str = "127.0.0.1"
    """Where to listen at that port."""
    replicas: int = Field(1, ge=1)
    """How many engines share the requests, behind HAProxy."""
    autoscaling: AutoscalingConfig | None = None
    """How many there are by load, in place of `replicas`."""
    affinity: Literal["conversation", "prefix"] = "conversation"
    """Which of several replicas answers: the one that has the conversation, and so remembers its
    mix; or the one that was asked the longest prefix of the prompt."""
    slots: int = Field(16, ge=1)
    """Requests in one batch, each with its own mix; further ones wait, at most `max_queued` of
    them."""
    max_queued: int = Field(256, ge=1)
    """How many answers wait at most; a request for more is a 429."""
    max_probe_tokens: int = Field(512, ge=1)
    """How many tokens of a turn routing reads."""
    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """The largest body, unpacked."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Of a prompt; a longer one is a 400. Unset, what the base can read."""
    max_answer_tokens: int | None = Field(None, ge=1)
    """Of an answer; asking for more is a 400, and for nothing this much. Unset, what the base can
    write."""
    body_timeout_s: float = Field(30, gt=0)
    """Seconds until all of a request's body must have come."""
    request_timeout_s: float = Field(600, gt=0)
    """Seconds that a request may take."""
    drain_s: float = Field(10, ge=0)
    """Seconds that running requests have to end when the server stops."""
    cors_origins: list[str] = []
    """Origins of the web pages that may ask; `*` for all."""
    console: bool = True
    """Whether `/console` is served: a page for operators, which asks for keys where they are
    needed."""
    sessions: int = Field(4096, ge=0)
    """How many turns of conversations a replica remembers the mix of."""
    session_idle_s: float = Field(3600, gt=0)
    """Seconds that a turn is remembered after its last use."""
    log: LogConfig = LogConfig()
    """The lines that it writes."""
    traces: TracesConfig | None = None
    """Unset, nothing is traced."""

    @model_validator(mode="after")
    def _counts_replicas_once(self) -> "ServerConfig":
        if self.autoscaling is not None and self.replicas != 1:
            raise ValueError(
                "replicas: with autoscaling, its min_replicas and max_replicas say how many"
            )
        return self

    @property
    def fewest_replicas(self) -> int:
        """How many there are at least."""
        return self.replicas if self.autoscaling is None else self.autoscaling.min_replicas

    @property
    def most_replicas(self) -> int:
        """How many there are at most."""
        return self.replicas if self.autoscaling is None else self.autoscaling.max_replicas


class ShadowConfig(Section):
    """A policy that decides for a share of the requests without being used, after their answers."""

    policy: str
    """Its name."""
    share: float = Field(gt=0, le=1)
    """The share of requests."""
    generate: float = Field(0.0, ge=0, le=1)
    """The share of those requests that it also answers, unseen."""
    at_once: int = Field(2, ge=1, le=64)
    """How many run at once; what is beyond is left out and counted."""


class ExperimentsConfig(Section):
    """How experiments run on this server."""

    refresh_s: float = Field(0.4, gt=0, le=60)
    """Seconds until every replica knows a change, also of the kill switch."""
    guard_s: float = Field(5.0, gt=0)
    """Seconds between two looks at guardrails and bandits."""
    shadow: ShadowConfig | None = None
    """None to run no policy in the shadow of requests."""


class ServeConfig(Section):
    """All that a server is told."""

    model: ModelConfig
    """The base."""
    library: LibraryConfig
    """The experts."""
    mix: MixConfig = MixConfig()
    """What mixes may be."""
    policies: dict[str, PolicyConfig] = {}
    """The routing policies, by their names; `base` is always there."""
    default_policy: str = "retrieval"
    """The policy of requests that name none."""
    server: ServerConfig = ServerConfig()
    """The HTTP server."""
    access: AccessConfig = AccessConfig()
    """Who may ask."""
    store: StoreOptions | None = None
    """Where experiments are kept; without a store there are none."""
    experiments: ExperimentsConfig = ExperimentsConfig()
    """How experiments run."""

    @model_validator(mode="before")
    @classmethod
    def _with_base(cls, data: Any) -> Any:
        """The policy `base` is always there: it is what the others fall back to."""
        if isinstance(data, dict) and isinstance(policies := data.get("policies") or {}, dict):
            return {**data, "policies": {"base": {"type": "static"}, **policies}}
        return data

    @model_validator(mode="after")
    def _names_exist(self) -> "ServeConfig":
        for name in self.needed:
            if name not in self.policies:
                raise ValueError(
                    f"there is no policy {name!r}; policies has: {', '.join(self.policies)}"
                )
        for name, policy in self.policies.items():
            try:
                options = check_options(policy.type, policy.options)
            except RouterError as error:
                raise ValueError(f"policies.{name}: {error}") from None
            decides = (policy.type in _AROUND and options.selector) or policy.type
            if policy.inline and not issubclass(SELECTORS.get(decides, Policy), InlineSelector):
                able = ", ".join(
                    kind for kind, known in SELECTORS.items() if issubclass(known, InlineSelector)
                )
                raise ValueError(
                    f"policies.{name}: inline: type {decides!r} cannot decide inside a pass; these"
                    f" can: {able}, and {' or '.join(_AROUND)} with one of them as its selector"
                )
        shadow = self.experiments.shadow
        if shadow is not None and shadow.policy not in self.policies:
            raise ValueError(
                f"there is no policy {shadow.policy!r} to shadow; policies has:"
                f" {', '.join(self.policies)}"
            )
        if self.policies["base"] != PolicyConfig(type="static"):
            raise ValueError("policies.base is the base model itself; give yours another name")
        return self

    @model_validator(mode="after")
    def _is_guarded(self) -> "ServeConfig":
        hosts = {"host": self.server.host}
        if self.server.admin_port is not None:
            hosts["admin_host"] = self.server.admin_host
        for name, host in hosts.items():
            if not (_is_local(host) or self.access.keys or self.access.insecure):
                raise ValueError(
                    f"server.{name} {host} lets other machines in, and there are no keys: add"
                    " some to access.keys (tta keys new LABEL), listen on 127.0.0.1, or start with"
                    " --insecure"
                )
        if self.server.admin_port == self.server.port:
            raise ValueError("server.admin_port is server.port; leave it out to share it")
        return self

    @model_validator(mode="after")
    def _tenants_can_ask(self) -> "ServeConfig":
        for name, tenant in self.access.tenants.items():
            own = {"base", *(self.policies if tenant.policies is None else tenant.policies)}
            where = f"access.tenants.{name}.policies"
            if unknown := own - self.policies.keys():
                raise ValueError(f"{where}: there is no policy {', '.join(sorted(unknown))}")
            if tenant.policies == []:
                raise ValueError(f"{where}: name at least one; base uses no expert")
            for policy in own:
                if (fallback := self.policies[policy].fallback) not in own:
                    raise ValueError(f"{where}: {policy} falls back to {fallback}: name that too")
        within = [p for p in self.policies.values() if p.inline]
        most = MOST_POLICIES_WITHIN // 2  # the other half is for a change of the library
        if self.access.tenants and len(within) * (1 + len(self.access.tenants)) > most:
            raise ValueError(
                f"access.tenants: {len(within)} inline policies for each of"
                f" {len(self.access.tenants)} tenants and the server; an engine keeps {most}"
            )
        return self

    def narrow(self, tenant: TenantConfig, experts: Collection[str]) -> "ServeConfig":
        """Return the config of a server that has nothing but what a tenant may use.

        Args:
            tenant: What it may use.
            experts: The experts that it may use.
        """
        entries = {
            name: mix
            for name, mix in self.library.entries.items()
            if (tenant.entries is None or name in tenant.entries) and mix.keys() <= {*experts}
        }
        own = ["base", *(self.policies if tenant.policies is None else tenant.policies)]
        default = self.default_policy if self.default_policy in own else own[1]
        return self.model_copy(
            update={
                "library": self.library.model_copy(update={"entries": entries}),
                "policies": {name: p for name, p in self.policies.items() if name in own},
                "default_policy": default,
            }
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """The policies that answer requests which did not ask for them."""
        return self.default_policy, *(policy.fallback for policy in self.policies.values())

    @property
    def acts_from(self) -> Literal["start", "user_turn"]:
        """Where mixes begin to act, if a request does not say so."""
        return self.mix.acts_from or ("user_turn" if self.routes_inside else "start")

    @property
    def routes_inside(self) -> bool:
        """Whether a policy decides inside the pass."""
        return any(policy.inline for policy in self.policies.values())

    @property
    def reads_features(self) -> bool:
        """Whether the engine has to read features, for a policy or to keep them."""
        return self.library.pinned is not None or any(
            find_policy_class(p.type).reads_features for p in self.policies.values()
        )

    @property
    def gating_scores(self) -> set[str]:
        """What its policies gate by; if any does, the engine keeps factors of another form."""
        return {
            check_options(p.type, p.options).score
            for p in self.policies.values()
            if p.type == "gated"
        }


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
