"""The server's typed config: a YAML file, where an unknown key stops the start."""

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from router.errors import RouterError
from router.policies.selector import InlineSelector
from router.policies.selectors import SELECTORS
from router.policy import CoefficientField, Policy
from router.registry import check_options, find_policy_class
from tta_serve.engine.options import Capacity
from tta_serve.exceptions import ConfigError
from tta_serve.store.options import StoreOptions

_SQLITE = "sqlite:///"
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
    "enable_prompt_embeds": "a prompt without tokens cannot be routed",
}
_CONNECTORS = ("OffloadingConnector", "SimpleCPUOffloadConnector")
KEY_VARIABLE = "TTA_ADMIN_KEY"  # of the environment: the key of management


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The base model, and how vLLM runs it."""

    id: str = Field(pattern=r"^[^:\s]+$")
    """The name that clients use."""
    source: str
    """A folder or a Hugging Face id."""
    dtype: str | None = None
    max_model_len: int | None = Field(None, ge=16)
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_gib: int = Field(1, ge=1, description="CPU only; on a GPU vLLM takes what is free")
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


class LibraryConfig(_Section):
    """The experts, and the mixes that have names."""

    path: Path
    """A folder of experts: PEFT adapters, and what `tta experts` stores."""
    everyday: Path | None = None
    """A file of prompts that no expert should answer, one a line."""
    entries: dict[str, dict[str, CoefficientField]] = {}
    """Mixes by their names: the coefficient of each expert."""
    capacity: Capacity = Capacity()


class MixConfig(_Section):
    grid: float = Field(0.05, gt=0, le=1)
    max_experts: int = Field(4, ge=1)
    minimum: float = -2.0
    maximum: float = 2.0


class PolicyConfig(_Section):
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


class ServerConfig(_Section):
    """The HTTP server and its bounds."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1)
    slots: int = Field(16, ge=1)
    """Requests in one batch, each with its own mix; further ones wait, at most `max_queued` of
    them."""
    max_queued: int = Field(256, ge=1)
    max_probe_tokens: int = Field(512, ge=1)
    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    body_timeout_s: float = Field(30, gt=0)
    """Seconds until all of a request's body must have come."""
    request_timeout_s: float = Field(600, gt=0)
    drain_s: float = Field(10, ge=0)
    """Seconds that running requests have to end when the server stops."""
    cors_origins: list[str] = []
    """Origins of the web pages that may ask; `*` for all."""
    sessions: int = Field(4096, ge=0)
    """How many turns of conversations a replica remembers the mix of."""
    session_idle_s: float = Field(3600, gt=0)
    """Seconds that a turn is remembered after its last use."""


class ShadowConfig(_Section):
    """A policy that decides for a share of the requests without being used, after their answers."""

    policy: str
    share: float = Field(gt=0, le=1)
    generate: float = Field(0.0, ge=0, le=1)
    """The share of those requests that it also answers, unseen."""
    at_once: int = Field(2, ge=1, le=64)
    """How many run at once; what is beyond is left out and counted."""


class ExperimentsConfig(_Section):
    """How experiments run on this server."""

    refresh_s: float = Field(0.4, gt=0, le=60)
    """Seconds until every replica knows a change, also of the kill switch."""
    guard_s: float = Field(5.0, gt=0)
    """Seconds between two looks at guardrails and bandits."""
    api_keys: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}
    """The SHA-256 of each API key, hexadecimal, by the label that experiments know it under."""
    shadow: ShadowConfig | None = None
    """None to run no policy in the shadow of requests."""


class ServeConfig(_Section):
    """All that a server is told."""

    model: ModelConfig
    library: LibraryConfig
    mix: MixConfig = MixConfig()
    policies: dict[str, PolicyConfig] = {}
    default_policy: str = "retrieval"
    server: ServerConfig = ServerConfig()
    store: StoreOptions | None = None
    """Where experiments are kept; without a store there are none."""
    experiments: ExperimentsConfig = ExperimentsConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_base(cls, data: Any) -> Any:
        """The policy `base` is always there: it is what the others fall back to."""
        if isinstance(data, dict):
            data = {
                **data,
                "policies": {"base": {"type": "static"}, **(data.get("policies") or {})},
            }
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
            decides = (policy.type == "gated" and options.selector) or policy.type
            if policy.inline and not issubclass(SELECTORS.get(decides, Policy), InlineSelector):
                able = ", ".join(
                    kind for kind, known in SELECTORS.items() if issubclass(known, InlineSelector)
                )
                raise ValueError(
                    f"policies.{name}: inline: type {decides!r} cannot decide inside a pass; these"
                    f" can: {able}, and gated with one of them as its selector"
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

    @property
    def needed(self) -> tuple[str, ...]:
        """The policies that answer requests which did not ask for them."""
        return self.default_policy, *(policy.fallback for policy in self.policies.values())

    @property
    def reads_features(self) -> bool:
        return any(find_policy_class(p.type).reads_features for p in self.policies.values())

    @property
    def gating_scores(self) -> set[str]:
        """What its policies gate by; if any does, the engine keeps factors of another form."""
        return {
            check_options(p.type, p.options).score
            for p in self.policies.values()
            if p.type == "gated"
        }


def load(path: Path | None, overrides: dict[str, Any]) -> ServeConfig:
    """The config in `path`, with dotted `overrides` such as {"server.port": 9000} on top.

    Raises ConfigError.
    """
    data = _read(path) if path else {}
    for dotted, value in overrides.items():
        if value is not None:
            _set(data, dotted.split("."), value)
    try:
        return ServeConfig.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"{path or 'the given options'} cannot be used:", *lines])
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold sections such as model: and library:")
    library = data.get("library")
    store = data.get("store")
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("chat_template"), str):
        model["chat_template"] = _beside(path, model["chat_template"])
    if isinstance(library, dict):  # paths in a file are relative to the file
        for key in ("path", "everyday"):
            if isinstance(library.get(key), str):
                library[key] = _beside(path, library[key])
    if isinstance(store, dict) and str(store.get("url")).startswith(_SQLITE):
        store["url"] = _SQLITE + _beside(path, store["url"].removeprefix(_SQLITE))
    return data


def _beside(file: Path, given: str) -> str:
    return os.path.realpath(file.parent / Path(given).expanduser())


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
    data[keys[-1]] = value
