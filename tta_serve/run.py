"""Running the application in a Ray of its own on this machine."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray
from ray import serve

from tta_serve.app import build_app
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
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
            serve.start(http_options={"host": server.host, "port": server.port})
            started.callback(serve.shutdown)
            app = build_app(plan)
            try:
                serve.run(app, name=APP_NAME, route_prefix="/")
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


def _last_words() -> str:
    application = serve.status().applications[APP_NAME]
    messages = [d.message for d in application.deployments.values() if d.message]
    return "\n".join(messages or [application.message])
