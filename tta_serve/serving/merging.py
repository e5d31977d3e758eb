"""vLLM's app with a mix for every prompt that it generates from."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tta_serve import metrics
from tta_serve.catalog import Ask
from tta_serve.engine.client import OWNER, EngineClient
from tta_serve.experiments.journal import Entry
from tta_serve.experiments.trials import Trials
from tta_serve.experts import Experts
from tta_serve.protocol import RequestError
from tta_serve.serving.admission import Admission
from tta_serve.serving.answer import Answer
from tta_serve.serving.errors import failure_of
from tta_serve.serving.exchange import Exchange
from tta_serve.serving.request import REQUEST, GenerateRequest
from tta_serve.serving.routes import GENERATES, TOKENIZES, Routes


class Merging:
    """An ASGI app around vLLM's, entered by every route that generates."""

    def __init__(  # noqa: PLR0913 - one part each
        self,
        app: ASGIApp,
        routes: Routes,
        engine: EngineClient,
        experts: Experts,
        admission: Admission,
        trials: Trials | None,
    ) -> None:
        """trials: None without a store"""
        self._app, self._routes, self._engine, self._experts = app, routes, engine, experts
        self._admission, self._trials = admission, trials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: GenerateRequest | None = scope.get(REQUEST)
        if request is not None and scope["path"] in GENERATES:
            await self._generate(request, scope, receive, send)
        elif request is not None and scope["path"] in TOKENIZES:
            await self._tokenize(request, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _generate(self, request: GenerateRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the wish; admit; let vLLM answer, whose prompts are routed and bound as they come; record."""
        with self._experts.hold() as view, metrics.counted() as count:
            entry = Entry(view)
            try:
                ask = self._read_wish(scope["path"], request, entry)
                count.policy = ask.label
                with self._admission.admit(request.count * request.samples) as admitted:
                    exchange = Exchange(request, ask, entry, self._engine, admitted)
                    count.value = await self._answer(exchange, scope, receive, send)
            except RequestError as error:
                count.value = "client_error"
                await failure_of(error).response()(scope, receive, send)

    def _read_wish(self, path: str, request: GenerateRequest, entry: Entry) -> Ask:
        """What decides the request: what it asks for, or the kill switch or an experiment in its place."""
        self._routes.check(path, request.body, self._engine.vocabulary)
        ask = entry.view.catalog.ask(request.model, request.body.get("merge"))
        ask = ask.warned(self._routes.warnings(path, request.body))
        return self._trials.ask(ask, request, entry) if self._trials else ask

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> str:
        """Let vLLM's app answer. Returns how it ended, as metrics and logs count it."""
        entry, answer = exchange.entry, Answer(exchange, send)
        owner = OWNER.set(exchange)
        try:
            await self._app(scope, answer.listening(receive), answer.send)
        except Exception as error:
            await answer.fail(error)
        finally:
            OWNER.reset(owner)
            entry.outcome = _outcome(answer)
            if self._trials:
                self._trials.ended(entry, exchange.again if exchange.asked else None)
        return entry.outcome

    async def _tokenize(self, request: GenerateRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """No mix is needed; the model has to exist."""
        try:
            self._routes.check(scope["path"], request.body, self._engine.vocabulary)
            self._experts.current.catalog.ask(request.model, None)
        except RequestError as error:
            await failure_of(error).response()(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            """The engine is not asked: what vLLM fails at is the request."""
            await send({**message, "status": 400} if message.get("status") == 500 else message)

        await self._app(scope, receive, tell)


def _outcome(answer: Answer) -> str:
    if answer.left or answer.status is None or not answer.ended:
        return "aborted"
    if answer.status < 400:
        return "ok"
    return "client_error" if answer.status < 500 else "error"
