"""The Ray Serve application of a config."""

import os
import secrets
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMConfig, build_llm_deployment

from tta_serve.config.loading import read_admin_key
from tta_serve.config.sections import ServeConfig, ServerConfig
from tta_serve.serving.conversation_router import ConversationRouter
from tta_serve.serving.experts.startup import StartupPlan, source_of
from tta_serve.serving.prefix_router import PrefixRouter
from tta_serve.serving.ray_private import with_request_router
from tta_serve.serving.replica.replica import MergingReplica
from tta_serve.telemetry.traces import EXPORT_TIMEOUT_S

_FEW_CORES = 4
_HEALTH_CHECK_S = 10


def build_app(plan: StartupPlan, log_address: str | None = None) -> serve.Application:
    """The application.

    A lone replica listens itself; several stand behind HAProxy, as Ray's direct ingress has it.

    Args:
        log_address: Of the `LogWriter` that takes the lines of the log; None for none.
    """
    llm_config = _llm_config(plan)
    arguments = {
        "plan": plan,
        "admin_key": read_admin_key(),
        "server_id": secrets.token_hex(8),
        "log_address": log_address,
    }
    if plan.config.server.replicas > 1:
        router = _choose_router(plan.config.server)
        return with_request_router(MergingReplica, llm_config, arguments, router)
    return build_llm_deployment(llm_config, deployment_cls=MergingReplica, bind_kwargs=arguments)


def _llm_config(plan: StartupPlan) -> LLMConfig:
    model = plan.config.model
    server = plan.config.server
    on_gpu = _has_gpu()
    return LLMConfig(
        model_loading_config={"model_id": model.id, "model_source": str(source_of(model.source))},
        engine_kwargs=_engine_args(plan, on_gpu),
        deployment_config={
            "num_replicas": server.replicas,
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
        if (
            config.model.tensor_parallel > 1
        ):  # vLLM binds each rank to a NUMA node of its own, and most machines have one
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        elif (
            len(os.sched_getaffinity(0)) <= _FEW_CORES
        ):  # vLLM keeps one core free of computing, which here is a big part
            env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = os.environ.get(
                "VLLM_CPU_NUM_OF_RESERVED_CPU", "0"
            )
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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
