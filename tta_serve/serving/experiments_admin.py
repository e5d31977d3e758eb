"""Experiments over HTTP, behind the key of management. Only `feedback` is for everybody."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, PlainTextResponse, Response

from router.experiments.definition import Definition
from router.policy import RouterError
from tta_serve import metrics
from tta_serve.config import ServeConfig
from tta_serve.experiments.control import Control
from tta_serve.experiments.guard import Guard
from tta_serve.protocol import RequestError
from tta_serve.store import feedback, tickets
from tta_serve.store.database import Database
from tta_serve.store.feedback import Feedback, IdempotencyKey

_OFF = "this server has no store, and so no experiments; give it one: store: {url: sqlite:///PATH}"


class Kill(BaseModel):
    """to: `base`, or an entry that answers everybody"""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str


class Stop(BaseModel):
    """arm: None for the whole experiment"""

    model_config = ConfigDict(extra="forbid", strict=True)

    arm: str | None = None


class Office:
    """The control's side of a server with a store, in every replica: what is decided stands in the store.

    leads: whether this replica is the one that looks after running experiments now
    """

    def __init__(self, config: ServeConfig, db: Database, leads: Callable[[], bool]) -> None:
        assert config.store is not None
        self.db = db
        self.control = Control(self.db, config.policies.keys())
        self.secret = tickets.secret_of(self.db)
        self.feedback_s = config.store.feedback_days * 86400
        self.guard = Guard(self.db, self.control, config.store, config.experiments.guard_s, leads)
        self.guard.start()


def experiments_router(replica: Any, office: Office | None) -> APIRouter:
    """office: None on a server without a store"""
    router = APIRouter(tags=["experiments"])

    def opened() -> Office:
        if office is None:
            raise RequestError(_OFF, status=409)
        return office

    async def answered(action: Callable[[Office], Any], status: int = 200) -> Response:
        found = await asyncio.to_thread(action, opened())
        headers = {"etag": f'"{found["version"]}"'} if "version" in found else {}
        return JSONResponse(found, status, headers)

    @router.get("/admin/experiments")
    async def experiments() -> Response:
        """All experiments, and the kill switch."""
        return await answered(lambda o: o.control.listed())

    @router.get("/admin/experiments/{name}")
    async def experiment(name: str) -> Response:
        """One experiment, with its history."""
        return await answered(lambda o: o.control.shown(name))

    @router.put("/admin/experiments/{name}")
    async def define_experiment(request: Request, name: str, dry_run: bool = False) -> Response:
        """Create with `If-None-Match: *`, change with `If-Match`."""
        definition = await _definition(request, name)
        if request.headers.get("if-none-match") == "*":
            return await answered(lambda o: o.control.create(definition, dry_run=dry_run), 200 if dry_run else 201)
        expected = _expected(request, "; to create one send If-None-Match: *")
        return await answered(lambda o: o.control.change(definition, expected, dry_run=dry_run))

    @router.post("/admin/experiments/{name}/start")
    async def start_experiment(request: Request, name: str) -> Response:
        """Assign units from now on."""
        expected = _expected(request)
        return await answered(lambda o: o.control.start(name, expected))

    @router.post("/admin/experiments/{name}/stop")
    async def stop_experiment(request: Request, name: str, stop: Stop | None = None) -> Response:
        """Stop an experiment, or one of its arms."""
        expected = _expected(request)
        return await answered(lambda o: o.control.stop(name, expected, stop.arm if stop else None))

    @router.get("/admin/experiments/{name}/report")
    async def experiment_report(name: str, format: Literal["json", "markdown"] = "json") -> Response:
        """What came of it so far."""
        from tta_serve.experiments.report import as_json, as_markdown, report_of

        report = await asyncio.to_thread(lambda: report_of(opened().db, name))
        if format == "markdown":
            return PlainTextResponse(as_markdown(report), media_type="text/markdown")
        return JSONResponse(as_json(report))

    @router.get("/admin/kill")
    async def killed() -> Response:
        """What the kill switch is set to."""
        return await answered(lambda o: {"kill": o.control.killed()})

    @router.put("/admin/kill")
    async def kill(kill: Kill) -> Response:
        """Answer everybody with the base, or with an entry."""
        entries = replica.entries()
        return await answered(lambda o: {"kill": o.control.kill(kill.to, entries)})

    @router.delete("/admin/kill")
    async def unkill() -> Response:
        """Answer as usual."""
        return await answered(lambda o: {"kill": o.control.kill(None)})

    @router.post("/v1/feedback")
    async def send_feedback(outcome: Feedback, idempotency_key: Annotated[IdempotencyKey | None, Header()] = None) -> Response:
        """What a request turned out to be worth, under the id that its answer gave."""
        o = opened()
        try:
            stored = await asyncio.to_thread(feedback.take, o.db, o.secret, outcome, idempotency_key, o.feedback_s)
        except RequestError as error:
            metrics.feedback.labels(str(error.status)).inc()
            raise
        metrics.feedback.labels("200").inc()
        return JSONResponse({"metric": stored.metric, "value": stored.value, "time": stored.time})

    return router


async def _definition(request: Request, name: str) -> Definition:
    try:
        data = await request.json()
    except ValueError:
        raise RequestError("the body is not JSON") from None
    if isinstance(data, dict) and data.setdefault("name", name) != name:
        raise RequestError(f"the body names the experiment {data['name']!r}, the path {name!r}", param="name")
    try:
        return Definition.parse(data)
    except RouterError as error:
        raise RequestError(str(error)) from None


def _expected(request: Request, more: str = "") -> int:
    """The version in If-Match. Raises RequestError: 428 without, 400 for anything else than a version."""
    given = request.headers.get("if-match")
    if given is None:
        raise RequestError(f"say which version you have seen: If-Match with the ETag of the experiment{more}", status=428)
    if not (digits := given.strip().strip('"')).isdecimal():
        raise RequestError(f'If-Match is a version such as "3", not {given!r}', param="If-Match")
    return int(digits)
