"""The HTTP side: Ray's OpenAI ingress, with the answer's headers, metrics and health."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tta_serve import errors, metrics
from tta_serve.config import ServeConfig
from tta_serve.engine.ray_private import ErrorResponse
from tta_serve.experiments.admin import ExperimentsAdmin, Office
from tta_serve.protocol import MergeInfo, RequestError

ENDPOINTS: dict[str, Callable[[FastAPI], Any]] = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "tokenize": lambda app: app.post("/tokenize"),
    "detokenize": lambda app: app.post("/detokenize"),
    "metrics": lambda app: app.get("/metrics"),
    "healthz": lambda app: app.get("/healthz"),
    "readyz": lambda app: app.get("/readyz"),
    "experts": lambda app: app.get("/admin/experts"),
    "load_expert": lambda app: app.put("/admin/experts/{name}"),
    "unload_expert": lambda app: app.delete("/admin/experts/{name}"),
    "policies": lambda app: app.get("/admin/policies"),
    "explain": lambda app: app.post("/admin/policies/explain"),
    "experiments": lambda app: app.get("/admin/experiments"),
    "experiment": lambda app: app.get("/admin/experiments/{name}"),
    "define_experiment": lambda app: app.put("/admin/experiments/{name}"),
    "start_experiment": lambda app: app.post("/admin/experiments/{name}/start"),
    "stop_experiment": lambda app: app.post("/admin/experiments/{name}/stop"),
    "experiment_report": lambda app: app.get("/admin/experiments/{name}/report"),
    "killed": lambda app: app.get("/admin/kill"),
    "kill": lambda app: app.put("/admin/kill"),
    "unkill": lambda app: app.delete("/admin/kill"),
    "feedback": lambda app: app.post("/v1/feedback"),
}


class MergingIngress(ExperimentsAdmin, OpenAiIngress):  # type: ignore[misc]
    """Passes every model name on: the replica knows which exist. admin_key: of `Admin`, None to switch it off."""

    def __init__(self, llm_deployments: dict[str, DeploymentHandle], *, config: ServeConfig, admin_key: str | None) -> None:
        super().__init__(llm_deployments, dict.fromkeys(llm_deployments))
        (self._served,) = llm_deployments
        self._timeout_s = config.server.request_timeout_s
        self._office = Office(config) if config.store else None
        self._admin_key = admin_key
        self._changing = asyncio.Lock()
        self._started = int(time.time())

    async def _get_model_id(self, model: str | None) -> str:
        return self._served

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card(name) for name in await self._models()]}

    async def model_data(self, model: str) -> Response:
        models = await self._models()
        if model not in models:
            raise RequestError(
                f"The model {model!r} does not exist; there are: {', '.join(models)}", status=404, param="model"
            )
        return JSONResponse(self._card(model))

    async def _models(self) -> list[str]:
        found: list[str] = await self._one.models.remote()
        return found

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "tta-serve"}

    async def _process_llm_request(self, body: Any, call_method: str, raw_request: Request | None = None) -> Response:
        items = self._get_response(body=body, call_method=call_method, raw_request=raw_request)
        async with asyncio.timeout(self._timeout_s):
            first = await anext(items)
            if not isinstance(first, MergeInfo):
                return _whole(first)
            chunks = await anext(items)
        error = chunks[0] if isinstance(chunks, list) else chunks
        if isinstance(error, ErrorResponse):
            return _whole(error)
        return StreamingResponse(_events(chunks, items), media_type="text/event-stream", headers=first.headers())

    async def metrics(self) -> Response:
        """Every replica's metrics, ours and vLLM's, in one exposition."""
        try:
            async with asyncio.timeout(10):
                texts = await self._all("metrics")
        except (TimeoutError, RayError) as error:
            return PlainTextResponse(f"no replica answers: {type(error).__name__}\n", 503)
        labelled = [*((str(i), text) for i, text in enumerate(texts)), ("ingress", metrics.exposition())]
        return PlainTextResponse(metrics.merged(labelled), media_type="text/plain; version=0.0.4")

    async def healthz(self) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self) -> Response:
        """200 once an engine answers, 503 until then."""
        try:
            async with asyncio.timeout(2):
                await self._one.check_health.remote()
        except Exception as error:
            return PlainTextResponse(f"not ready: {type(error).__name__}\n", 503)
        return PlainTextResponse("ready\n")


def _whole(item: Any) -> Response:
    if isinstance(item, ErrorResponse):
        error = item.error
        return JSONResponse(errors.body(int(error.code), error.message, error.param), int(error.code))
    return JSONResponse(item.model_dump(), headers=MergeInfo.model_validate(item.merge).headers())


async def _events(first: list[str], rest: AsyncGenerator[Any, None]) -> AsyncIterator[str]:
    """Server-sent events; what goes wrong after the first token becomes an `error` event, as OpenAI clients expect."""
    try:
        yield "".join(first)
        async for chunks in rest:
            yield "".join(chunks)
    except Exception as error:
        yield f"data: {json.dumps(errors.body(*errors.described(error)))}\n\n"
