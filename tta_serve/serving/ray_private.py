"""The private names of Ray that we use, read at 2.60.0, in one place."""

from typing import Any

import ray
from ray import serve
from ray.llm._internal.serve.core.ingress.builder import (
    _build_direct_streaming_llm_deployment,
    _build_openai_ingress_request_router,
)
from ray.llm._internal.serve.utils.broadcast import broadcast
from ray.serve.config import RequestRouterConfig

from tta_serve.serving.conversation_router import ConversationRouter

__all__ = ["broadcast", "end_unneeded", "with_request_router"]


def end_unneeded() -> None:
    """End what Ray starts beside its cluster of one machine, and nothing here asks: log monitor, autoscaler, dashboard."""
    node = ray._private.worker._global_node
    for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
        end(check_alive=False)


def with_request_router(replica: type, llm_config: Any, arguments: dict[str, Any]) -> serve.Application:
    """An application whose replicas serve their own app behind HAProxy, which asks a router for each request's replica."""
    chosen = {"request_router_config": RequestRouterConfig(request_router_class=ConversationRouter)}
    server = _build_direct_streaming_llm_deployment(
        llm_config, deployment_cls=replica, bind_kwargs=arguments, override_serve_options=chosen
    )
    router = _build_openai_ingress_request_router(server=server, llm_config=llm_config)
    application: serve.Application = server._with_ingress_request_router(router)
    return application
