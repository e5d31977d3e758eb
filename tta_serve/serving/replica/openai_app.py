"""The app that a replica serves: vLLM's own, less the routes that nobody needs, with ours."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tta_serve import metrics
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import RequestError
from tta_serve.protocol import MergeRequest
from tta_serve.serving.access.key_ring import CALLER, Caller
from tta_serve.serving.console.static_files import console_router
from tta_serve.serving.http import openai_errors
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.reading.routes import GENERATES, keep_served
from tta_serve.serving.replica.canary import CanaryError
from tta_serve.serving.replica.config_admin import config_router
from tta_serve.serving.replica.experiments_admin import ControlPlane, experiments_router
from tta_serve.serving.replica.experts_admin import experts_router
from tta_serve.serving.replica.peers import Peers

logger = logging.getLogger(__name__)

_TITLE = "tta-serve"


def complete_app(
    app: FastAPI,
    replica: Any,
    peers: Peers,
    config: ServeConfig,
    control_plane: ControlPlane | None,
) -> None:
    """Make vLLM's app ours.

    Args:
        config: Says where experts are loaded from, and whether the console is served.
        control_plane: None without a store.
    """
    keep_served(app)
    app.title = _TITLE
    # vLLM opens its app to every origin, and watches a scaling that is not served; of its
    # middleware its metrics are kept.
    app.user_middleware[:] = [
        one
        for one in app.user_middleware
        if getattr(one.cls, "__name__", "") == PrometheusInstrumentatorMiddleware.__name__
    ]
    app.middleware_stack = None
    for router in (
        _models_router(replica),
        _health_router(replica, peers),
        config_router(replica, peers),
        experts_router(replica, peers, config.library.path),
        experiments_router(replica, control_plane),
    ):
        app.include_router(router)
    if config.server.console:
        app.include_router(console_router())
    openai_errors.install(app)
    app.openapi = _with_merge(app.openapi)  # type: ignore[method-assign]


def _models_router(replica: Any) -> APIRouter:
    router = APIRouter()
    began = int(time.time())

    def find(request: Request) -> Catalog:
        caller: Caller = request.scope[CALLER]
        catalog: Catalog = replica.find_catalog(caller.tenant)
        return catalog

    def card(catalog: Catalog, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": began,
            "owned_by": _TITLE,
            "root": catalog.served,
            "parent": None if name == catalog.served else catalog.served,
            "max_model_len": replica.max_model_len,
        }

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        """All names that a request's `model` may have."""
        catalog = find(request)
        return JSONResponse(
            {"object": "list", "data": [card(catalog, name) for name in catalog.models()]}
        )

    @router.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        """One of them."""
        catalog = find(request)
        if model not in catalog.models():
            raise catalog.unknown(model)
        return JSONResponse(card(catalog, model))

    return router


def _health_router(replica: Any, peers: Peers) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def exposition() -> Response:
        """Every replica's metrics, ours and vLLM's, in one exposition."""
        try:
            collected = await peers.ask_reachable("metrics")
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", 503)
        text = metrics.expose_families((str(i), own) for i, own in enumerate(collected))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @router.get("/healthz")
    async def healthz() -> Response:
        """200 as long as the process answers."""
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    async def readyz() -> Response:
        """200 while the engine answers, and with the weights that it began with; else 503."""
        try:
            await replica.check_ready()
        except CanaryError as error:
            logger.error("not ready: %s", error)
            return JSONResponse({"detail": "not ready: CanaryError"}, 503)
        except Exception as error:
            return JSONResponse({"detail": f"not ready: {type(error).__name__}"}, 503)
        return PlainTextResponse("ready\n")

    return router


def _with_merge(stock: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI schema, in which every route that generates takes `merge`."""

    def openapi() -> dict[str, Any]:
        schema = stock()
        schemas = schema["components"]["schemas"]
        if MergeRequest.__name__ not in schemas:
            template = "#/components/schemas/{model}"
            merge = MergeRequest.model_json_schema(ref_template=template)
            schemas.update(merge.pop("$defs", {}))
            schemas[MergeRequest.__name__] = merge
            for path in GENERATES:
                content = schema["paths"][path]["post"]["requestBody"]["content"][
                    "application/json"
                ]
                name = content["schema"]["$ref"].rpartition("/")[2]
                schemas[name]["properties"]["merge"] = {
                    "$ref": template.format(model=MergeRequest.__name__)
                }
        return schema

    return openapi
