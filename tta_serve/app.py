"""The Ray Serve application of a config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from adapters.library import Library
from tta_serve.catalog import Catalog
from tta_serve.config import ConfigError, ServeConfig
from tta_serve.engine.options import BankOptions
from tta_serve.http import make_app
from tta_serve.ingress import ENDPOINTS, MergingIngress
from tta_serve.server import MergingServer

_FEW_CORES = 4


@dataclass(frozen=True)
class Plan:
    """A config, checked against what is on disk, before anything is started."""

    config: ServeConfig
    library: Path
    digests: dict[str, str]
    catalog: Catalog
    layers: int

    @classmethod
    def of(cls, config: ServeConfig) -> "Plan":
        """Read all experts and the base's config. Raises AdapterError or ConfigError."""
        library = Library.open(config.library.path)
        layers = _depth(config.model.source)
        catalog = Catalog.of(config, library.names, layers)
        return cls(config, library.root.resolve(), library.digests, catalog, layers)

    @property
    def tap_layer(self) -> int | None:
        """The layer whose input routes: a fifth of the way up."""
        return self.layers // 5 if self.config.reads_features else None


def build_app(plan: Plan) -> serve.Application:
    """The application: an ingress in front of replicas of `MergingServer`."""
    config = plan.config
    known = {"config": config, "digests": plan.digests, "catalog": plan.catalog}
    server = build_llm_deployment(_llm_config(plan), deployment_cls=MergingServer, bind_kwargs=known)
    app = make_app(config.server.max_request_bytes)
    ingress = make_fastapi_ingress(MergingIngress, endpoint_map=ENDPOINTS, app=app)
    limit = config.server.slots + config.server.max_queued
    return serve.deployment(ingress, name="ingress", num_replicas=1, max_ongoing_requests=2 * limit).bind(
        llm_deployments={config.model.id: server},
        models=plan.catalog.models(),
        request_timeout_s=config.server.request_timeout_s,
    )


def _llm_config(plan: Plan) -> LLMConfig:
    model, server = plan.config.model, plan.config.server
    on_gpu = _has_gpu()
    return LLMConfig(
        model_loading_config={"model_id": model.id, "model_source": str(_source(model.source))},
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
    bank = BankOptions(str(plan.library), tuple(plan.digests.items()), plan.tap_layer)
    return {
        **bank.engine_args(plan.config.server.slots),
        "dtype": model.dtype or ("auto" if on_gpu else "float32"),
        "tensor_parallel_size": model.tensor_parallel,
        "enforce_eager": True,
        "disable_log_stats": False,
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
    if isinstance(_source(config.model.source), Path):
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _source(source: str) -> Path | str:
    """A local folder as a path, anything else as the Hugging Face id it is."""
    path = Path(source).expanduser()
    return path.resolve() if path.is_dir() else source


def _depth(source: str) -> int:
    """How many decoder layers the base has."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(_source(source)))
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"model.source: {source!r} is neither a model folder nor a reachable model id: {first_line}"
        ) from None
    return int(config.get_text_config().num_hidden_layers)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
