"""The private names of Ray that we use, read at 2.60.0, in one place."""

from typing import Any

from ray import serve
from ray.llm._internal.serve.core.ingress.builder import (
    _build_direct_streaming_llm_deployment,
    _build_openai_ingress_request_router,
)
from ray.llm._internal.serve.utils.broadcast import broadcast

__all__ = ["broadcast", "with_request_router"]


def with_request_router(replica: type, llm_config: Any, arguments: dict[str, Any]) -> serve.Application:
    """An application whose replicas serve their own app behind HAProxy, which asks a router for the replica of each request."""
    server = _build_direct_streaming_llm_deployment(llm_config, deployment_cls=replica, bind_kwargs=arguments)
    router = _build_openai_ingress_request_router(server=server, llm_config=llm_config)
    application: serve.Application = server._with_ingress_request_router(router)
    return application
