"""Experiments over HTTP: part of the ingress, behind the key of management. Only `feedback` is for everybody."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Header, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, PlainTextResponse, Response

from router.experiments.definition import Definition
from router.policy import RouterError
from tta_serve import metrics
from tta_serve.admin import Admin
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
    """The control's side of a server with a store, in the one process that is its ingress."""

    def __init__(self, config: ServeConfig) -> None:
        assert config.store is not None
        self.db = Database(config.store.url)
        self.control = Control(self.db, config.policies.keys())
        self.secret = tickets.secret_of(self.db)
        self.feedback_s = config.store.feedback_days * 86400
        self.guard = Guard(self.db, self.control, config.store, config.experiments.guard_s)
        self.guard.start()


class ExperimentsAdmin(Admin):
    """Part of the ingress."""

    _office: Office | None

    async def experiments(self, request: Request) -> Response:
        return await self._answered(request, lambda o: o.control.listed())

    async def experiment(self, request: Request, name: str) -> Response:
        return await self._answered(request, lambda o: o.control.shown(name))

    async def define_experiment(self, request: Request, name: str, dry_run: bool = False) -> Response:
        """Create with `If-None-Match: *`, change with `If-Match`."""
        self._check_key(request)
        definition = await _definition(request, name)
        if request.headers.get("if-none-match") == "*":
            return await self._answered(
                request, lambda o: o.control.create(definition, dry_run=dry_run), 200 if dry_run else 201
            )
        expected = _expected(request, "; to create one send If-None-Match: *")
        return await self._answered(request, lambda o: o.control.change(definition, expected, dry_run=dry_run))

    async def start_experiment(self, request: Request, name: str) -> Response:
        self._check_key(request)
        expected = _expected(request)
        return await self._answered(request, lambda o: o.control.start(name, expected))

    async def stop_experiment(self, request: Request, name: str, stop: Stop = Stop()) -> Response:  # noqa: B008 - FastAPI's way
        self._check_key(request)
        expected = _expected(request)
        return await self._answered(request, lambda o: o.control.stop(name, expected, stop.arm))

    async def experiment_report(self, request: Request, name: str, format: Literal["json", "markdown"] = "json") -> Response:
        from tta_serve.experiments.report import as_json, as_markdown, report_of

        report = await self._done(request, lambda o: report_of(o.db, name))
        if format == "markdown":
            return PlainTextResponse(as_markdown(report), media_type="text/markdown")
        return JSONResponse(as_json(report))

    async def killed(self, request: Request) -> Response:
        return await self._answered(request, lambda o: {"kill": o.control.killed()})

    async def kill(self, request: Request, kill: Kill) -> Response:
        self._check_key(request)
        entries = await self._one.entries.remote()
        return await self._answered(request, lambda o: {"kill": o.control.kill(kill.to, entries)})

    async def unkill(self, request: Request) -> Response:
        return await self._answered(request, lambda o: {"kill": o.control.kill(None)})

    async def feedback(
        self, outcome: Feedback, idempotency_key: Annotated[IdempotencyKey | None, Header()] = None
    ) -> Response:
        """What a request turned out to be worth, under the id that its answer gave."""
        office = self._opened()
        take = lambda: feedback.take(office.db, office.secret, outcome, idempotency_key, office.feedback_s)  # noqa: E731
        try:
            stored = await asyncio.to_thread(take)
        except RequestError as error:
            metrics.feedback.labels(str(error.status)).inc()
            raise
        metrics.feedback.labels("200").inc()
        return JSONResponse({"metric": stored.metric, "value": stored.value, "time": stored.time})

    def _opened(self) -> Office:
        if self._office is None:
            raise RequestError(_OFF, status=409)
        return self._office

    async def _done(self, request: Request, action: Callable[[Office], Any]) -> Any:
        self._check_key(request)
        office = self._opened()
        return await asyncio.to_thread(action, office)

    async def _answered(self, request: Request, action: Callable[[Office], Any], status: int = 200) -> Response:
        found = await self._done(request, action)
        headers = {"etag": f'"{found["version"]}"'} if "version" in found else {}
        return JSONResponse(found, status, headers)


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
