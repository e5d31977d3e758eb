"""Running the application in a Ray of its own on this machine."""

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tta_serve.config.loading import KEY_VARIABLE
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError, RayEndedError, StartError
from tta_serve.serving.experts.startup import StartupPlan
from tta_serve.telemetry.log_writer import LogWriter

APP_NAME = "tta-serve"
_LOOK_S = 2.0


class RunningApp:
    """The application while it runs: a context manager that returns once it answers.

    Raises AdapterError or ConfigError before anything is started, StartError if the engine or a
    policy fails to start.
    """

    def __init__(self, config: ServeConfig, *, log: bool = False) -> None:
        """Start nothing yet.

        Args:
            log: Whether the lines of the log are written, as the config says.
        """
        self.config = config
        self._logs = log and config.server.log.format != "none"
        self.url = f"http://{config.server.host}:{config.server.port}"
        self._log_address: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "RunningApp":
        plan = StartupPlan.of(self.config)
        server = self.config.server
        behind_proxy = server.most_replicas > 1
        for name, value in (_QUIET | (_BEHIND_PROXY if behind_proxy else {})).items():
            os.environ.setdefault(name, value)
        # Ray reads its environment when it is imported, and sets up logging.
        for name in ("alembic", "httpx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        import ray
        from ray import serve

        from tta_serve.serving.ray_private import end_unneeded

        logging.getLogger("ray.serve").setLevel(logging.ERROR)

        need = 2 + server.most_replicas * (1 + self.config.model.tensor_parallel)
        with ExitStack() as started:
            writer = LogWriter(server.log) if self._logs else None
            self._log_address = started.enter_context(writer).address if writer else None
            ray.init(
                address="local",
                num_cpus=max(need, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
            started.callback(ray.shutdown)
            end_unneeded()
            serve.start(
                proxy_location="EveryNode" if behind_proxy else "Disabled",
                http_options={"host": server.host, "port": server.port},
            )
            started.callback(serve.shutdown)
            _run(plan, self._log_address)
            self._stack = started.pop_all()
        return self

    def restart(self, config: ServeConfig) -> None:
        """Replace the replicas by those of a config, one after the other.

        Each ends when what it answers has ended, or at `server.drain_s`. A lone one is not there
        until the next has started.

        Raises ConfigError, AdapterError or StartError; before the last nothing has changed.
        """
        fixed = {"host": "host", "port": "port", "most_replicas": "the most replicas"}
        for name, words in fixed.items():
            old, new = getattr(self.config.server, name), getattr(config.server, name)
            if new != old:
                raise ConfigError(f"server: {words}: {old} until the next start, not {new}")
        _run(StartupPlan.of(config), self._log_address)
        self.config = config

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Return never. Raises RayEndedError once one of Ray's own processes has ended.

        Ray starts a replica again, but nobody its own processes: that is a service manager's part.
        """
        from tta_serve.serving.ray_private import find_ended_parts

        while not (ended := find_ended_parts()):
            time.sleep(_LOOK_S)
        raise RayEndedError(f"Ray's {' and '.join(ended)} ended: start the server again")


@contextmanager
def managed(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """The address of a server, and a key of its own for its management."""
    key = os.environ[KEY_VARIABLE] = secrets.token_hex(16)
    with RunningApp(config) as app:
        yield app.url, key


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would run the engine at a lower priority than all else on the machine.
    "RAY_worker_niceness": "0",
    # Requests, the engine's outputs and Ray's calls share one event loop: no token passes from
    # thread to thread.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # What follows is looked at less often, or not at all: nobody here asks for it.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "2",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "60000",
    "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "3600",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_ray_events_report_interval_ms": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "0",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_local_fs_monitor_interval_ms": "5000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_object_manager_timer_freq_ms": "1000",
}
"""What Ray's processes are told; `loadtest edge` has the figures with and without."""

_BEHIND_PROXY = {
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
        "tta_serve.serving.http.proxy_middleware:middlewares"
    ),
}


def _run(plan: StartupPlan, log_address: str | None) -> None:
    """Run the application, in place of the one that runs, if one does. Raises StartError."""
    from ray import serve

    from tta_serve.serving.app import build_app

    listens = plan.config.server.most_replicas == 1
    app = build_app(plan, listens=listens, log_address=log_address)
    try:
        serve.run(app, name=APP_NAME, route_prefix=None if listens else "/")
    except RuntimeError:
        raise StartError(_last_words()) from None


def _last_words() -> str:
    from ray import serve

    application = serve.status().applications[APP_NAME]
    messages = [d.message for d in application.deployments.values() if d.message]
    return "\n".join(messages or [application.message])
