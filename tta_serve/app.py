"""The Ray Serve application of a config."""

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from tta_serve.config import KEY_VARIABLE, ServeConfig
from tta_serve.http import make_app
from tta_serve.ingress import ENDPOINTS, MergingIngress
from tta_serve.plan import Plan, source_of
from tta_serve.server import MergingServer

_FEW_CORES = 4


def build_app(plan: Plan) -> serve.Application:
    """The application: an ingress in front of replicas of `MergingServer`."""
    config = plan.config
    server = build_llm_deployment(_llm_config(plan), deployment_cls=MergingServer, bind_kwargs={"plan": plan})
    app = make_app(config.server.max_request_bytes)
    ingress = make_fastapi_ingress(MergingIngress, endpoint_map=ENDPOINTS, app=app)
    limit = config.server.slots + config.server.max_queued
    return serve.deployment(ingress, name="ingress", num_replicas=1, max_ongoing_requests=2 * limit).bind(
        llm_deployments={config.model.id: server},
        config=config,
        admin_key=os.environ.get(KEY_VARIABLE),
    )


def _llm_config(plan: Plan) -> LLMConfig:
    model, server = plan.config.model, plan.config.server
    on_gpu = _has_gpu()
    return LLMConfig(
        model_loading_config={"model_id": model.id, "model_source": str(source_of(model.source))},
        engine_kwargs=_engine_args(plan, on_gpu),
        deployment_config={
            "num_replicas": server.replicas,
            "max_ongoing_requests": server.slots + server.max_queued,
            "max_queued_requests": server.max_queued,
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": 10,
            "max_constructor_retry_count": 1,
        },
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}] * model.tensor_parallel},
        runtime_env={"env_vars": _environment(plan.config, on_gpu)},
        # The batcher would hold the first token back by its interval.
        experimental_configs={"stream_batching_interval_ms": 0},
        # vLLM's metrics go to the process's own registry, which /metrics reads, and not to Ray's agent.
        log_engine_metrics=False,
    )


def _engine_args(plan: Plan, on_gpu: bool) -> dict[str, Any]:
    model = plan.config.model
    return {
        **plan.engine_args(),
        "dtype": model.dtype or ("auto" if on_gpu else "float32"),
        "tensor_parallel_size": model.tensor_parallel,
        "enforce_eager": True,
        "disable_log_stats": False,
        # On a CPU it is only what must be free at the start: the cache has a size of its own.
        **({} if on_gpu else {"gpu_memory_utilization": 0.5}),
        **({"max_model_len": model.max_model_len} if model.max_model_len else {}),
        **model.engine_args,
    }


def _environment(config: ServeConfig, on_gpu: bool) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(config.model.kv_cache_gib)
        if config.model.tensor_parallel > 1:  # vLLM binds each rank to a NUMA node of its own, and most machines have one
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        elif len(os.sched_getaffinity(0)) <= _FEW_CORES:  # vLLM keeps one core free of computing, which here is a big part
            env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    if isinstance(source_of(config.model.source), Path):
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
