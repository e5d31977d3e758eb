"""The Ray Serve application of a config, and running it."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from adapters.library import Library
from tta_serve.catalog import Catalog
from tta_serve.config import ServeConfig
from tta_serve.engine.options import BankOptions
from tta_serve.http import make_app
from tta_serve.ingress import ENDPOINTS, MergingIngress
from tta_serve.server import MergingServer

APP_NAME = "tta-serve"


def build_app(config: ServeConfig) -> serve.Application:
    """The application: an ingress in front of replicas of `MergingServer`. Raises AdapterError or ConfigError."""
    library = Library.open(config.library.path)
    catalog = Catalog.of(config, library.names)
    server = build_llm_deployment(_llm_config(config, library), deployment_cls=MergingServer, bind_kwargs={"config": config})
    ingress = make_fastapi_ingress(MergingIngress, endpoint_map=ENDPOINTS, app=make_app(config.server.max_request_bytes))
    limit = config.server.slots + config.server.max_queued
    deployment = serve.deployment(ingress, name="ingress", num_replicas=1, max_ongoing_requests=2 * limit)
    return deployment.bind(
        llm_deployments={config.model.id: server},
        models=catalog.models(),
        request_timeout_s=config.server.request_timeout_s,
    )


def _llm_config(config: ServeConfig, library: Library) -> LLMConfig:
    model, server = config.model, config.server
    on_gpu = _has_gpu()
    bank = BankOptions(
        library=str(library.root.resolve()),
        experts=tuple(library.digests.items()),
        tap_layer=tap_layer(model.source) if config.needs_features else None,
    )
    engine: dict[str, Any] = {
        **bank.engine_args(server.slots),
        "dtype": model.dtype or ("auto" if on_gpu else "float32"),
        "tensor_parallel_size": model.tensor_parallel,
        "enforce_eager": True,
        "disable_log_stats": False,
        **({"max_model_len": model.max_model_len} if model.max_model_len else {}),
        **model.engine_args,
    }
    return LLMConfig(
        model_loading_config={"model_id": model.id, "model_source": str(_source(model.source))},
        engine_kwargs=engine,
        deployment_config={
            "num_replicas": server.replicas,
            "max_ongoing_requests": server.slots + server.max_queued,
            "max_queued_requests": server.max_queued,
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": 10,
        },
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}] * model.tensor_parallel},
        runtime_env={"env_vars": _environment(config, on_gpu)},
        # The batcher would hold the first token back by its interval.
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )


def _environment(config: ServeConfig, on_gpu: bool) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(config.model.kv_cache_gib)
    if _source(config.model.source) != config.model.source:
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _source(source: str) -> Path | str:
    """A local folder as a path, anything else as the Hugging Face id it is."""
    path = Path(source).expanduser()
    return path.resolve() if path.is_dir() else source


def tap_layer(source: str) -> int:
    """The layer whose input routes: a fifth of the base's depth."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(_source(source)))
    return int(config.get_text_config().num_hidden_layers) // 5


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class StartError(RuntimeError):
    """The application did not start; the message is the last words of the part that failed."""


def _why_not_running() -> str:
    application = serve.status().applications[APP_NAME]
    messages = [d.message for d in application.deployments.values() if d.message] or [application.message]
    return "\n".join(messages)


class RunningApp:
    """The application, started in a Ray of its own on this machine. Use as a context manager."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.url = f"http://{config.server.host}:{config.server.port}"
        self._stack = ExitStack()

    def __enter__(self) -> "RunningApp":
        server = self.config.server
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        need = 2 + server.replicas * (1 + self.config.model.tensor_parallel)
        with ExitStack() as started:
            ray.init(
                address="local",
                num_cpus=max(need, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                # Ray's own ports, too, listen on this machine alone.
                _node_ip_address="127.0.0.1",
            )
            started.callback(ray.shutdown)
            serve.start(http_options={"host": server.host, "port": server.port})
            started.callback(serve.shutdown)
            app = build_app(self.config)
            try:
                serve.run(app, name=APP_NAME, route_prefix="/")
            except RuntimeError:
                raise StartError(_why_not_running()) from None
            self._stack = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Until interrupted."""
        while True:
            time.sleep(3600)
