"""Experiments over HTTP, behind the key of management. Only `feedback` is for everybody."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tta_serve import metrics
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import RequestError
from tta_serve.experiments.control.lifecycle import Lifecycle
from tta_serve.experiments.control.watchdog import Watchdog
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.errors import ExperimentError
from tta_serve.serving.http.openai_errors import store_status
from tta_serve.store import feedback, tickets
from tta_serve.store.database import Database
from tta_serve.store.errors import StoreError
from tta_serve.store.feedback import Feedback, IdempotencyKey
from tta_serve.store.options import DAY_S

_OFF = "this server has no store, and so no experiments; give it one: store: {url: sqlite:///PATH}"


class Kill(BaseModel):
    """What the kill switch is to answer all requests with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str
    """`base`, or an entry that answers everybody."""


class Stop(BaseModel):
    """Which part of an experiment is to stop."""

    model_config = ConfigDict(extra="forbid", strict=True)

    arm: str | None = None
    """None for the whole experiment."""


class ControlPlane:
    """What manages the experiments of a server with a store, in every replica.

    What is decided stands in the store, so that all replicas come to know of it.
    """

    def __init__(self, config: ServeConfig, db: Database, leads: Callable[[], bool]) -> None:
        """Start the watchdog.

        Args:
            leads: Whether this replica is the one that looks after running experiments now.
        """
        assert config.store is not None
        self.db = db
        self.lifecycle = Lifecycle(self.db, config.policies.keys())
        self.secret = tickets.secret_of(self.db)
        self.feedback_s = config.store.feedback_days * DAY_S
        every_s = config.experiments.guard_s
        self.watchdog = Watchdog(self.db, self.lifecycle, config.store, every_s, leads)
        self.watchdog.start()


def experiments_router(replica: Any, control_plane: ControlPlane | None) -> APIRouter:
    """Return the routes that manage experiments.

    Args:
        control_plane: None on a server without a store.
    """
    router = APIRouter(tags=["experiments"])
    desk = _Desk(control_plane)
    _add_experiments(router, desk)
    _add_kill_switch(router, desk, replica)
    _add_feedback(router, desk)
    return router


class _Desk:
    """What the routes ask the control plane by: it says so if there is none."""

    def __init__(self, control_plane: ControlPlane | None) -> None:
        self._control_plane = control_plane

    def require(self) -> ControlPlane:
        if self._control_plane is None:
            raise RequestError(_OFF, status=409)
        return self._control_plane

    async def answer(self, action: Callable[[Lifecycle], Any], status: int = 200) -> Response:
        found = await asyncio.to_thread(action, self.require().lifecycle)
        headers = {"etag": f'"{found["version"]}"'} if "version" in found else {}
        return JSONResponse(found, status, headers)


def _add_experiments(router: APIRouter, desk: _Desk) -> None:
    @router.get("/admin/experiments")
    async def experiments() -> Response:
        """All experiments, and the kill switch."""
        return await desk.answer(lambda lifecycle: lifecycle.list_all())

    @router.get("/admin/experiments/{name}")
    async def experiment(name: str) -> Response:
        """One experiment, with its history."""
        return await desk.answer(lambda lifecycle: lifecycle.show(name))

    @router.put("/admin/experiments/{name}")
    async def define_experiment(request: Request, name: str, dry_run: bool = False) -> Response:
        """Create with `If-None-Match: *`, change with `If-Match`."""
        definition = await _definition(request, name)
        if request.headers.get("if-none-match") == "*":
            return await desk.answer(
                lambda lifecycle: lifecycle.create(definition, dry_run=dry_run),
                200 if dry_run else 201,
            )
        expected = _expected(request, "; to create one send If-None-Match: *")
        return await desk.answer(
            lambda lifecycle: lifecycle.change(definition, expected, dry_run=dry_run)
        )

    @router.post("/admin/experiments/{name}/start")
    async def start_experiment(request: Request, name: str) -> Response:
        """Assign units from now on."""
        expected = _expected(request)
        return await desk.answer(lambda lifecycle: lifecycle.start(name, expected))

    @router.post("/admin/experiments/{name}/stop")
    async def stop_experiment(request: Request, name: str, stop: Stop | None = None) -> Response:
        """Stop an experiment, or one of its arms."""
        expected = _expected(request)
        return await desk.answer(
            lambda lifecycle: lifecycle.stop(name, expected, stop.arm if stop else None)
        )

    @router.get("/admin/experiments/{name}/report")
    async def experiment_report(
        name: str, format: Literal["json", "markdown"] = "json"
    ) -> Response:
        """What came of it so far."""
        from tta_serve.experiments.analysis.report import make_report, to_json, to_markdown

        report = await asyncio.to_thread(lambda: make_report(desk.require().db, name))
        if format == "markdown":
            return PlainTextResponse(to_markdown(report), media_type="text/markdown")
        return JSONResponse(to_json(report))


def _add_kill_switch(router: APIRouter, desk: _Desk, replica: Any) -> None:
    @router.get("/admin/kill")
    async def killed() -> Response:
        """What the kill switch is set to."""
        return await desk.answer(lambda lifecycle: {"kill": lifecycle.read_kill_switch()})

    @router.put("/admin/kill")
    async def kill(kill: Kill) -> Response:
        """Answer everybody with the base, or with an entry."""
        entries = replica.entries()
        return await desk.answer(
            lambda lifecycle: {"kill": lifecycle.set_kill_switch(kill.to, entries)}
        )

    @router.delete("/admin/kill")
    async def unkill() -> Response:
        """Answer as usual."""
        return await desk.answer(lambda lifecycle: {"kill": lifecycle.set_kill_switch(None)})


def _add_feedback(router: APIRouter, desk: _Desk) -> None:
    @router.post("/v1/feedback")
    async def send_feedback(
        outcome: Feedback, idempotency_key: Annotated[IdempotencyKey | None, Header()] = None
    ) -> Response:
        """What a request turned out to be worth, under the id that its answer gave."""
        plane = desk.require()
        try:
            stored = await asyncio.to_thread(
                feedback.take, plane.db, plane.secret, outcome, idempotency_key, plane.feedback_s
            )
        except StoreError as error:
            metrics.feedback.labels(str(store_status(error))).inc()
            raise
        metrics.feedback.labels("200").inc()
        return JSONResponse({"metric": stored.metric, "value": stored.value, "time": stored.time})


async def _definition(request: Request, name: str) -> Definition:
    try:
        data = await request.json()
    except ValueError:
        raise RequestError("the body is not JSON") from None
    if isinstance(data, dict) and data.setdefault("name", name) != name:
        raise RequestError(
            f"the body names the experiment {data['name']!r}, the path {name!r}", param="name"
        )
    try:
        return Definition.parse(data)
    except ExperimentError as error:
        raise RequestError(str(error)) from None


def _expected(request: Request, more: str = "") -> int:
    """The version in If-Match.

    Raises RequestError: 428 without, 400 for anything else than a version.
    """
    given = request.headers.get("if-match")
    if given is None:
        raise RequestError(
            f"say which version you have seen: If-Match with the ETag of the experiment{more}",
            status=428,
        )
    if not (digits := given.strip().strip('"')).isdecimal():
        raise RequestError(f'If-Match is a version such as "3", not {given!r}', param="If-Match")
    return int(digits)
