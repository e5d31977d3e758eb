"""Ray's plain OpenAI app, for `python -m loadtest edge` and `http`.

`python -m loadtest.sides.ray_direct BASE PORT` serves until it is told to end. What it needs of
Ray's environment is set by who starts it.
"""

import os
import signal
import sys
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from loadtest.sides.servers import MAX_MODEL_LEN, SLOTS


def main(base: str, port: int) -> None:
    """Serve the model in the folder `base` under the name `base`."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ray.init(
        address="local",
        num_cpus=max(3, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [_config(base)]}), route_prefix="/")
    ended.wait()
    serve.shutdown()
    ray.shutdown()


def _config(base: str) -> LLMConfig:
    """Return the engine's config, as the other sides have it."""
    names = [name for name in os.environ if name.startswith(("VLLM_", "HF_HUB_", "TOKENIZERS_"))]
    return LLMConfig(
        model_loading_config={"model_id": "base", "model_source": base},
        engine_kwargs={
            "dtype": "float32",
            "enforce_eager": True,
            "max_num_seqs": SLOTS,
            "max_model_len": MAX_MODEL_LEN,
            "gpu_memory_utilization": 0.5,
        },
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 1000},
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": {name: os.environ[name] for name in names}},
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
