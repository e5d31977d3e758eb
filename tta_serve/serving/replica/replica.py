"""The process that clients speak to: an engine, its policies, and the HTTP server."""

import asyncio
import gc
import logging
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from router.decision import Prompt
from tta_serve import metrics
from tta_serve.config.effective import describe_config
from tta_serve.config.reload import reload_config
from tta_serve.config.sections import ServeConfig
from tta_serve.engine.client.engine_client import EngineClient
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.protocol import ConfigChange, ExpertChange, ExpertExamples, Explained, ExplainRequest
from tta_serve.serving.access.admission import Admission, Budgets
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.access.quarantine import Quarantine
from tta_serve.serving.autoscaling import CACHE_IN_USE
from tta_serve.serving.experts.live_experts import LiveExperts
from tta_serve.serving.experts.startup import StartupPlan, source_of
from tta_serve.serving.generation.merging import Merging
from tta_serve.serving.http.edge import Edge, EdgeRules
from tta_serve.serving.http.http_server import HttpServer
from tta_serve.serving.ray_private import ClusterText, skip_download
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.reading.routes import Routes
from tta_serve.serving.replica.canary import Canary
from tta_serve.serving.replica.config_history import ConfigHistory
from tta_serve.serving.replica.experiments_admin import ControlPlane
from tta_serve.serving.replica.model_names import serve_names
from tta_serve.serving.replica.openai_app import complete_app
from tta_serve.serving.replica.peers import Peers
from tta_serve.serving.replica.warm_up import warm_up
from tta_serve.serving.trials.stored_trials import StoredTrials
from tta_serve.serving.trials.trials import Trials
from tta_serve.store.database import Database
from tta_serve.telemetry.log_sender import LogSender
from tta_serve.telemetry.traces import TraceExport

logger = logging.getLogger(__name__)

_FEW_CORES = 4
_MOST_DESCRIBED = 64
"""Of so many experts at most the first line of the log says what policies know."""


class MergingReplica(LLMServer):  # type: ignore[misc]
    """Ray's `LLMServer`, whose engine's app is vLLM's with `Merging` around it."""

    async def __init__(  # type: ignore[misc]  # noqa: PLR0913 - what a process is told
        self,
        llm_config: LLMConfig,
        *,
        plan: StartupPlan,
        admin_key: str | None,
        listens: bool,
        server_id: str,
        log_address: str | None = None,
    ) -> None:
        """Reads the library anew: a replica that starts again finds it as it is now.

        It serves by the config that its fellows serve by.

        Args:
            admin_key: Of management, None to switch it off.
            listens: Whether it listens itself. Else Ray does, and calls its app.
            server_id: Of this start of the server, which all of its replicas share.
            log_address: Of the `LogWriter` that takes the lines of the log; None for none, whose
                lines go to this process's standard error.
        """
        if plan.config.model.tensor_parallel == 1 and len(os.sched_getaffinity(0)) <= _FEW_CORES:
            # vLLM keeps one core free of computing, which here is a big part.
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        log = plan.config.server.log
        self._log = None if log.format == "none" else LogSender(log, log_address)
        traces = plan.config.server.traces
        self._traces = None if traces is None else TraceExport(traces)
        self.history = ConfigHistory(ClusterText(f"tta-config-{server_id}"), plan.config)
        now = (await asyncio.to_thread(self.history.read))[-1]
        self._version = now.version
        self._quarantine = Quarantine(ClusterText(f"tta-suspects-{server_id}"))
        self._plan = StartupPlan.of(reload_config(plan.config, now.given))
        self._admin_key = admin_key
        self._listens = listens
        llm_config.update_engine_kwargs(**self._plan.engine_args())
        await super().__init__(llm_config)

    async def start(self) -> None:
        """Start the engine, then the policies, then the HTTP server.

        Nobody is answered before all are ready.
        """
        began = time.perf_counter()
        await super().start()
        config = self._plan.config
        self._llm = self.engine._engine_client
        self._engine = EngineClient(self._llm, config.server.max_probe_tokens)
        self._experts = LiveExperts(config, self._plan.layers, self._engine, self._version)
        await self._experts.open(self._plan.digests)
        self._trials = Trials()
        self._control_plane: ControlPlane | None = None
        if config.store is not None:
            db = await asyncio.to_thread(Database, config.store.url)
            self._trials = StoredTrials(config, db, self._experts.hold)
            self._control_plane = ControlPlane(config, db, _leads)
        await warm_up(self._engine)
        self._canary = Canary(self._engine)
        await self._ask_canary()
        self._servers: list[HttpServer] = []
        self._rules = EdgeRules(config.server, KeyRing(config.access, self._admin_key))
        self._admission = Admission(2 * config.server.slots, *count_room(config))
        await self._catch_up()
        await self._quarantine.refresh()
        if self._listens:
            app = await self.__serve_build_asgi_app__()
            await self._listen(HttpServer(app, config.server.host, config.server.port))
        # What is there by now stays: a collection that looked at all of it would delay tokens.
        gc.collect()
        gc.freeze()
        self._log_start(time.perf_counter() - began)

    def _log_start(self, seconds: float) -> None:
        config = self._plan.config
        said = {
            "version": version("tta-serve"),
            "model": config.model.id,
            "experts": sorted(self._experts.current.digests),
            "default_policy": config.default_policy,
            "seconds": round(seconds, 1),
        }
        if config.library.pinned is not None:
            known = self._experts.describe_examples()[:_MOST_DESCRIBED]
            said["examples"] = {one.expert: one.says for one in known}
        logger.info("serving", extra=said)

    async def _start_engine(self) -> None:
        """Without the actor that Ray would start to report on the model's use.

        Without the process, too, that it would start to download a base that is a folder here.
        """
        if isinstance(source_of(self._plan.config.model.source), Path):
            skip_download(self.engine.llm_config)
        await self.engine.start()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """vLLM's app, with ours around it. Ray asks for it where it listens itself."""
        config = self._plan.config
        app = await self.engine.build_asgi_app()
        serve_names(app.state.openai_serving_models)
        peers = Peers(self, config.server.fewest_replicas, config.server.most_replicas)
        complete_app(app, self, peers, config, self._control_plane)
        merging = Merging(
            app,
            Routes.of(app),
            self._engine,
            self._experts,
            self._admission,
            self._trials,
            Budgets(config.server.most_replicas),
            self._quarantine,
            shows_prompts=config.server.log.prompts,
        )
        if config.server.admin_port is not None:
            place = config.server.admin_host, config.server.admin_port
            shared = not self._listens
            await self._listen(HttpServer(Edge(merging, self._rules), *place, shared=shared))
        return build_edge(merging, self._rules, says_id=self._listens)

    async def _listen(self, server: HttpServer) -> None:
        await server.start()
        self._servers.append(server)

    async def _catch_up(self) -> None:
        """Serve by the config that its fellows have changed to while this replica started."""
        now = (await asyncio.to_thread(self.history.read))[-1]
        if now.version == self._experts.config_version:
            return
        if refusal := await self.stage("catch up", ConfigChange(now.version, now.given)):
            raise refusal
        await self.commit("catch up")

    async def check_health(self) -> None:
        """Raise if the engine is dead, or nobody can be answered."""
        await super().check_health()
        await self._quarantine.refresh()
        if not all(server.running for server in self._servers):
            raise RuntimeError("the HTTP server has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray asks beside the number of requests, where the number of replicas is theirs."""
        return {CACHE_IN_USE: metrics.cache_in_use()}

    async def check_ready(self) -> None:
        """Raise if the engine is dead or late, or answers with other weights than at the start."""
        await self.check_health()
        await self._ask_canary()

    async def _ask_canary(self) -> None:
        with self._experts.hold() as view:
            moved = view.experts.forms.keys() | view.experts.invocations.keys()
            await self._canary.check(view.digests.keys() - moved, view.digests)

    async def __del__(self) -> None:
        """End with the replica: requests end, what waits is written, the engine ends.

        Ray calls this.
        """
        logger.info("stopping")
        servers = getattr(self, "_servers", ())
        await asyncio.gather(*(s.stop(self._plan.config.server.drain_s) for s in servers))
        if experts := getattr(self, "_experts", None):
            await experts.close()
        if trials := getattr(self, "_trials", None):
            await asyncio.to_thread(trials.close)
        await super().__del__()
        if llm := getattr(self, "_llm", None):
            await asyncio.to_thread(llm.shutdown, 0)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    @property
    def catalog(self) -> Catalog:
        """The names that requests may use now."""
        return self.find_catalog(None)

    def find_catalog(self, tenant: str | None) -> Catalog:
        """Return the names that a tenant's requests may use now."""
        return self._experts.find(tenant).catalog

    @property
    def max_model_len(self) -> int:
        """Tokens of a prompt and its answer together."""
        return int(self._llm.model_config.max_model_len)

    def entries(self) -> list[str]:
        """The entries that everybody can be answered with."""
        return sorted(self.catalog.entries)

    @property
    def config(self) -> ServeConfig:
        """The config that is in force."""
        return self._experts.config

    def describe_config(self) -> dict[str, Any]:
        """The config, without secrets."""
        return describe_config(self.config)

    async def policies(self) -> dict[str, Any]:
        """All policies, and which is the default."""
        return self._experts.current.router.describe()

    async def explain(self, ask: ExplainRequest) -> list[Explained]:
        """What policies would do with a prompt. Raises RequestError for an unknown one."""
        with self._experts.hold() as view:
            return await view.router.explain(Prompt(ask.prompt), ask.policies)

    def describe_examples(self) -> list[ExpertExamples]:
        """What policies know of each expert, and what would make it better."""
        return self._experts.describe_examples()

    # What replicas ask of one another. A refusal is returned: Ray would wrap it if it were raised.

    async def experts(self) -> dict[str, Any]:
        """What is served, and how much room is taken."""
        return await self._experts.report()

    async def stage(self, name: str, change: ExpertChange | ConfigChange) -> RequestError | None:
        """Do what can fail of a change. Returns why it is refused, None if it is not."""
        try:
            if isinstance(change, ExpertChange):
                await self._experts.stage(name, change)
            else:
                await self._stage_config(name, change)
        except ConfigError as error:
            return RequestError(str(error))
        except RequestError as error:
            return error
        return None

    async def _stage_config(self, name: str, change: ConfigChange) -> None:
        if change.version <= self._experts.config_version:
            raise RequestError("another version of the config came first", status=409)
        config = reload_config(self.config, change.given)
        self._plan.check_engine(config)
        self._trials.check(config)
        await self._experts.stage_config(name, change.version, config)

    async def commit(self, name: str) -> None:
        """Make a staged change."""
        version = self._experts.config_version
        await self._experts.commit(name)
        if self._experts.config_version == version:
            return
        logger.info("config changed", extra={"version": self._experts.config_version})
        config = self.config
        self._rules.config = config.server
        self._rules.keys = KeyRing(config.access, self._admin_key)
        self._admission.resize(*count_room(config))
        self._trials.follow_config(config)
        if self._control_plane is not None:
            self._control_plane.lifecycle.policies = config.policies.keys()

    async def discard(self, name: str) -> None:
        """Undo `stage`."""
        await self._experts.discard(name)

    async def metrics(self) -> list[Metric]:
        """This replica's metrics, ours and vLLM's."""
        used, total = await self._engine.workers.slots()
        metrics.slots_used.set(used)
        metrics.slots_total.set(total)
        await self._observe_room()
        return metrics.collect_families()

    async def _observe_room(self) -> None:
        """Read how much room experts take, and how much there is."""
        workers = self._engine.workers
        used, (dense_bytes, switches) = await asyncio.gather(workers.count_used(), workers.dense())
        room = self._plan.config.library.capacity
        for what in ("experts", "ranks", "bytes"):
            metrics.resident.labels(what).set(getattr(used, what))
            metrics.capacity.labels(what).set(getattr(room, what))
        metrics.resident.labels("dense_bytes").set(dense_bytes)
        metrics.dense_switches.set(switches)


def _leads() -> bool:
    """Whether this replica is the first of its fellows."""
    return bool(serve.get_replica_context().rank.rank == 0)


def count_room(config: ServeConfig) -> tuple[int, int]:
    """Return how many samples are admitted: of all requests, and of those of one tenant."""
    most = config.server.slots + config.server.max_queued
    return most, -(-most // 2) if len(config.access.find_tenants()) > 1 else most


def build_edge(app: ASGIApp, rules: EdgeRules, *, says_id: bool = True) -> ASGIApp:
    """The outermost layers of the HTTP side."""
    edge = Edge(app, rules, managed=rules.config.admin_port is None, says_id=says_id)
    if not rules.config.cors_origins:
        return edge
    exposed = ["x-request-id", "x-tta-policy", "x-tta-arm", "x-tta-mix", "retry-after"]
    return CORSMiddleware(
        edge,
        allow_origins=rules.config.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=exposed,
    )
