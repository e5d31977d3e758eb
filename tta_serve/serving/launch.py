"""Running the application in a Ray of its own on this machine."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tta_serve.config import KEY_VARIABLE, ServeConfig, StartError
from tta_serve.plan import Plan

APP_NAME = "tta-serve"


class RunningApp:
    """The application while it runs: a context manager that returns once it answers.

    Raises AdapterError or ConfigError before anything is started, StartError if the engine or a policy fails to start.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.url = f"http://{config.server.host}:{config.server.port}"
        self._stack = ExitStack()

    def __enter__(self) -> "RunningApp":
        plan = Plan.of(self.config)
        server = self.config.server
        os.environ.update(_environment(server.replicas > 1))
        # Ray reads its environment when it is imported.
        import ray
        from ray import serve

        from tta_serve.serving.app import build_app

        need = 2 + server.replicas * (1 + self.config.model.tensor_parallel)
        with ExitStack() as started:
            ray.init(
                address="local",
                num_cpus=max(need, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
            started.callback(ray.shutdown)
            behind_proxy = server.replicas > 1
            serve.start(
                proxy_location="EveryNode" if behind_proxy else "Disabled",
                http_options={"host": server.host, "port": server.port},
            )
            started.callback(serve.shutdown)
            app = build_app(plan)
            try:
                serve.run(app, name=APP_NAME, route_prefix="/" if behind_proxy else None)
            except RuntimeError:
                raise StartError(_last_words()) from None
            self._stack = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@contextmanager
def managed(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """The address of a server, and a key of its own for its management."""
    key = os.environ[KEY_VARIABLE] = secrets.token_hex(16)
    with RunningApp(config) as app:
        yield app.url, key


def _environment(behind_proxy: bool) -> dict[str, str]:
    """What Ray's processes are told."""
    told = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
    if behind_proxy:
        told["RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"] = "1"
        told["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        told["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "tta_serve.serving.replica:middlewares"
    return told


def _last_words() -> str:
    from ray import serve

    application = serve.status().applications[APP_NAME]
    messages = [d.message for d in application.deployments.values() if d.message]
    return "\n".join(messages or [application.message])
