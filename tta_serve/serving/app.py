"""The Ray Serve application of a config."""

import os
import secrets
from pathlib import Path
from typing import Any

import yaml
from ray import serve
from ray.serve.config import AutoscalingPolicy, RequestRouterConfig
from ray.serve.llm import LLMConfig, build_llm_deployment

from tta_serve.config.loading import load, read_admin_key
from tta_serve.config.sections import ServeConfig, ServerConfig
from tta_serve.exceptions import ConfigError
from tta_serve.serving.autoscaling import ReplicasForLoad
from tta_serve.serving.conversation_router import ConversationRouter
from tta_serve.serving.experts.startup import StartupPlan, source_of
from tta_serve.serving.prefix_router import PrefixRouter
from tta_serve.serving.ray_private import with_request_router
from tta_serve.serving.replica.replica import MergingReplica
from tta_serve.telemetry.traces import EXPORT_TIMEOUT_S

CONFIG_VARIABLE = "TTA_CONFIG"
"""The variable of the environment that holds the place of the config, where `args` do not."""
_HEALTH_CHECK_S = 10


def build(args: dict[str, Any]) -> serve.Application:
    """The application for a Ray cluster that is there, as `serve run` and `serve deploy` call it.

    Ray's proxies listen, where the cluster's `http_options` say.

    Args:
        args: `config` is the place of a config file, by default that in TTA_CONFIG of the
            environment; `restarted_at` is any word, another one than before restarts all replicas;
            all else are values on top of the file by dotted place, strings as YAML.

    Raises AdapterError or ConfigError.
    """
    file = args.get("config") or os.environ.get(CONFIG_VARIABLE)
    values = {
        place: yaml.safe_load(value) if isinstance(value, str) else value
        for place, value in args.items()
        if place not in ("config", "restarted_at")
    }
    config = load(None if file is None else Path(file), values)
    if not (config.access.keys or config.access.insecure):
        raise ConfigError(
            "other machines may reach the proxies of a Ray cluster, and there are no keys: add some"
            " to access.keys (tta keys new LABEL), or set access.insecure=true"
        )
    return build_app(StartupPlan.of(config), listens=False)


def __getattr__(name: str) -> serve.Application:
    """`app`, which is `build` of nothing but TTA_CONFIG: `serve build` takes no function."""
    if name != "app":
        raise AttributeError(name)
    return build({})


def build_app(
    plan: StartupPlan, *, listens: bool, log_address: str | None = None
) -> serve.Application:
    """The application.

    Args:
        listens: Whether its replica, a lone one, listens itself. Else Ray does, and passes on.
        log_address: Of the `LogWriter` that takes the lines of the log; None for none.
    """
    llm_config = _llm_config(plan)
    arguments = {
        "plan": plan,
        "admin_key": read_admin_key(),
        "listens": listens,
        "server_id": secrets.token_hex(8),
        "log_address": log_address,
    }
    if listens:
        return build_llm_deployment(
            llm_config, deployment_cls=MergingReplica, bind_kwargs=arguments
        )
    replicas = build_llm_deployment(
        llm_config,
        deployment_cls=serve.ingress()(MergingReplica),
        bind_kwargs=arguments,
        override_serve_options={"request_router_config": _choose_router(plan.config.server)},
    )
    return with_request_router(replicas, llm_config)


def _llm_config(plan: StartupPlan) -> LLMConfig:
    model = plan.config.model
    server = plan.config.server
    on_gpu = _runs_on_gpu()
    return LLMConfig(
        model_loading_config={"model_id": model.id, "model_source": str(source_of(model.source))},
        engine_kwargs=_engine_args(plan, on_gpu),
        deployment_config={
            **_count_replicas(server),
            # Who waits is our `Admission`'s affair.
            "max_ongoing_requests": 1_000_000,
            "health_check_period_s": _HEALTH_CHECK_S,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": server.drain_s + 10,
            "max_constructor_retry_count": 1,
        },
        placement_group_config=None
        if on_gpu
        else {"bundles": [{"CPU": 1}] * model.tensor_parallel},
        runtime_env={"env_vars": _environment(plan.config, on_gpu)},
        # vLLM's metrics go to the process's own registry, which /metrics reads, and not to Ray's
        # agent.
        log_engine_metrics=False,
    )


def _count_replicas(server: ServerConfig) -> dict[str, Any]:
    """Return Ray's options of how many replicas there are."""
    scaling = server.autoscaling
    if scaling is None:
        return {"num_replicas": server.replicas}
    target = scaling.target_requests or server.slots
    policy = AutoscalingPolicy(
        policy_function=f"{ReplicasForLoad.__module__}:{ReplicasForLoad.__name__}",
        policy_kwargs={"requests": target, "cache": scaling.target_cache},
    )
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": target,
            "upscale_delay_s": scaling.up_delay_s,
            "downscale_delay_s": scaling.down_delay_s,
            "policy": policy,
        }
    }


def _choose_router(server: ServerConfig) -> RequestRouterConfig:
    """Return what chooses among several replicas."""
    if server.affinity == "conversation":
        return RequestRouterConfig(request_router_class=ConversationRouter)
    # Unset, prompts that begin alike would all go to one replica, however busy it is.
    balance = {"imbalanced_threshold": server.slots}
    return RequestRouterConfig(request_router_class=PrefixRouter, request_router_kwargs=balance)


def _engine_args(plan: StartupPlan, on_gpu: bool) -> dict[str, Any]:
    model = plan.config.model
    traces = plan.config.server.traces
    return {
        **plan.engine_args(),
        "dtype": model.dtype or ("auto" if on_gpu else "float32"),
        "tensor_parallel_size": model.tensor_parallel,
        "enforce_eager": True,
        "disable_log_stats": False,
        "enable_tokenizer_info_endpoint": True,
        "enable_server_load_tracking": True,
        "enable_auto_tool_choice": model.tool_parser is not None,
        "tool_call_parser": model.tool_parser,
        "chat_template": None if model.chat_template is None else str(model.chat_template),
        **({"reasoning_parser": model.reasoning_parser} if model.reasoning_parser else {}),
        # On a CPU it is only what must be free at the start: the cache has a size of its own.
        **({} if on_gpu else {"gpu_memory_utilization": 0.5}),
        **({"otlp_traces_endpoint": traces.endpoint} if traces else {}),
        **({"max_model_len": model.max_model_len} if model.max_model_len else {}),
        **model.engine_args,
    }


def _environment(config: ServeConfig, on_gpu: bool) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(config.model.kv_cache_gib)
        # Weights and states in pages of 2 MB, where Linux gives them to who asks: fewer misses and
        # faults. Older C libraries do not know the word, and pass it over.
        env["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        if (
            config.model.tensor_parallel > 1
        ):  # vLLM binds each rank to a NUMA node of its own, and most machines have one
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if config.server.traces is not None:
        env |= {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": str(EXPORT_TIMEOUT_S),
            "OTEL_SERVICE_NAME": "tta-serve",
            # vLLM makes spans below ours alone, of the requests that ours are of.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
    if isinstance(source_of(config.model.source), Path):
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _runs_on_gpu() -> bool:
    """Whether torch, and so vLLM, is a build for GPUs; this machine need not have one."""
    import torch

    return torch.version.cuda is not None
