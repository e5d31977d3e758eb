"""The private names of Ray that we use, read at 2.60.0, in one place."""

import asyncio
import logging
import pickle
import secrets
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.llm._internal.serve.core.ingress.builder import _build_openai_ingress_request_router
from ray.serve._private.common import ReplicaID, RequestMetadata
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY, SERVE_NAMESPACE
from ray.util import list_named_actors

__all__ = [
    "ClusterText",
    "NoAnswer",
    "ask_replicas",
    "end_unneeded",
    "find_ended_parts",
    "skip_download",
    "with_request_router",
]

_NAMESPACE = b"tta-serve"

logger = logging.getLogger(__name__)


class NoAnswer:
    """What stands for the answer of a replica that gave none."""


def end_unneeded() -> None:
    """End what Ray starts beside its cluster and nothing here asks.

    That is the log monitor, the autoscaler and the dashboard.
    """
    node = ray._private.worker._global_node
    for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
        end(check_alive=False)


def find_ended_parts() -> list[str]:
    """Return which of Ray's processes on this machine, started for this server, have ended."""
    node = ray._private.worker._global_node
    return [name for name, _ in node.dead_processes()]


class ClusterText:
    """A text under a name that lives as long as the cluster; every process of it may change it."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def read(self) -> bytes | None:
        """Return the text, None if nobody has written any."""
        found: bytes | None = _internal_kv_get(self._name, namespace=_NAMESPACE)
        return found

    def write(self, text: bytes) -> None:
        """Put a text in place of the one that there is."""
        _internal_kv_put(self._name, text, overwrite=True, namespace=_NAMESPACE)


def skip_download(llm_config: Any) -> None:
    """Let an engine start without the process in which Ray would download its base."""
    llm_config.get_or_create_callback().ctx.run_init_node = False


async def ask_replicas(method: str, args: tuple[Any, ...]) -> list[Any]:
    """Return what a method returns in this replica and its fellows, in the order of their names.

    One that starts or ends may give no answer: a `NoAnswer` stands in its place.

    Ray's own `broadcast` reads the request router from a thread that has no event loop; where the
    router is not made yet, it fails. And it passes over a replica that is gone without a word.
    """
    deployment = serve.get_replica_context().replica_id.deployment_id
    named = await asyncio.to_thread(list_named_actors, all_namespaces=True)
    names = sorted(actor["name"] for actor in named if actor["namespace"] == SERVE_NAMESPACE)
    fellows = [
        name
        for name in names
        if ReplicaID.is_full_id_str(name)
        and ReplicaID.from_full_id_str(name).deployment_id == deployment
    ]

    async def ask(name: str) -> Any:
        request = f"{method}-{secrets.token_hex(8)}"
        metadata = RequestMetadata(
            request_id=request, internal_request_id=request, call_method=method
        )
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, namespace=SERVE_NAMESPACE)
            return await actor.handle_request.remote(pickle.dumps(metadata), *args)
        except (RayError, ValueError):
            logger.warning("%s did not answer %s", name, method, exc_info=True)
            return NoAnswer()

    return list(await asyncio.gather(*map(ask, fellows)))


def with_request_router(replicas: serve.Application, llm_config: Any) -> serve.Application:
    """Return an application of which HAProxy, if Ray runs it, asks the replica of each request.

    Ray's own proxy chooses by itself, as the replicas' request router has it.
    """
    if not RAY_SERVE_ENABLE_HA_PROXY:
        return replicas
    ingress = _build_openai_ingress_request_router(server=replicas, llm_config=llm_config)
    application: serve.Application = replicas._with_ingress_request_router(ingress)
    return application
