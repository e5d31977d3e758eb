"""vLLM's app with a mix for every prompt that it generates from."""

from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tta_serve import metrics
from tta_serve.engine.client.engine_client import OWNER, EngineClient
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.admission import Admission, Budgets
from tta_serve.serving.access.quarantine import Quarantine, identify_request
from tta_serve.serving.experts.live_experts import LiveExperts
from tta_serve.serving.experts.pinned_requests import PinnedOffer
from tta_serve.serving.generation.answer import Answer
from tta_serve.serving.generation.exchange import Exchange
from tta_serve.serving.http.openai_errors import failure_of
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import REQUEST, GenerateRequest
from tta_serve.serving.reading.routes import GENERATES, TOKENIZES, Routes
from tta_serve.serving.trials.trials import RequestRecord, Trials
from tta_serve.telemetry.request_summary import SUMMARY, RequestSummary
from tta_serve.telemetry.traces import trace_request


class Merging:
    """An ASGI app around vLLM's, entered by every route that generates."""

    def __init__(  # noqa: PLR0913 - one part each
        self,
        app: ASGIApp,
        routes: Routes,
        engine: EngineClient,
        experts: LiveExperts,
        admission: Admission,
        trials: Trials,
        budgets: Budgets,
        quarantine: Quarantine,
        *,
        shows_prompts: bool = False,
    ) -> None:
        """Put them together.

        Args:
            shows_prompts: Whether the log has the last user turn of requests.
        """
        self._app = app
        self._routes = routes
        self._engine = engine
        self._experts = experts
        self._admission = admission
        self._trials = trials
        self._budgets = budgets
        self._quarantine = quarantine
        self._shows_prompts = shows_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: GenerateRequest | None = scope.get(REQUEST)
        if request is not None and scope["path"] in GENERATES:
            await self._generate(request, scope, receive, send)
        elif request is not None and scope["path"] in TOKENIZES:
            await self._tokenize(request, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _generate(
        self, request: GenerateRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request: read its wish, admit it, and let vLLM answer with the mix it gets."""
        summary: RequestSummary = scope[SUMMARY]
        with (
            trace_request(summary, request.headers, request.body),
            self._experts.hold(self._experts.find(request.caller.tenant)) as view,
            metrics.count_request() as count,
            self._trials.follow(view) as record,
        ):
            count.tenant, count.usage = request.caller.tenant, record.usage
            summary.name_model(request.model)
            summary.usage = record.usage
            try:
                wish = self._read_wish(scope["path"], request, record)
                count.policy = summary.policy = wish.label

                with (
                    self._budgets.admit(request.caller, record.usage),
                    self._admission.admit(
                        request.count * request.samples,
                        request.caller.tenant,
                        request.left_s,
                        prompts=max(request.count, 1),
                    ) as admitted,
                ):
                    exchange = Exchange(request, wish, record, self._engine, admitted)
                    await self._answer_watched(exchange, scope, receive, send)
                self._keep_pinned(wish, request, record)
            except RequestError as error:
                record.outcome = "client_error"
                await failure_of(error).response()(scope, receive, send)
            finally:
                count.value = summary.outcome = record.outcome
                summary.error = record.error or summary.error
                summary.info = record.info
                summary.prompt = record.prompt.user_turn if self._shows_prompts else None

    def _read_wish(self, path: str, request: GenerateRequest, record: RequestRecord) -> Wish:
        """Return what decides the request. Raises RequestError for what cannot be used of it."""
        self._routes.check(path, request.body, self._engine.vocabulary)
        request.limits.check_body(request.body)
        wish = record.view.catalog.read_wish(request.model, request.body.get("merge"))
        wish = wish.with_warnings(self._routes.warnings(path, request.body))
        return self._trials.decide(wish, request, record)

    def _keep_pinned(self, wish: Wish, request: GenerateRequest, record: RequestRecord) -> None:
        """Let a request that was answered be kept as an example of the expert that it pinned."""
        kept = self._experts.keeps_pinned and record.outcome == "ok"
        if kept and wish.pinned is not None:
            tenant, conversation = request.caller.tenant, request.conversation
            self._experts.keep_pinned(
                PinnedOffer(wish.pinned, record.view, record.prompt, tenant, conversation)
            )

    async def _answer_watched(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the request be answered, and remember it if the engine dies meanwhile."""
        identify = partial(identify_request, scope["path"], exchange.request.body)
        async with self._quarantine.watch(identify):
            await self._answer(exchange, scope, receive, send)
        if exchange.killed:
            await self._quarantine.blame(identify())
        elif exchange.record.outcome == "ok":
            await self._quarantine.clear(identify)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Let vLLM's app answer. It hands each prompt to the exchange, which routes it."""
        answer = Answer(exchange, send)
        owner = OWNER.set(exchange)
        try:
            await self._app(scope, answer.listening(receive), answer.send)
        except Exception as error:
            await answer.fail(error)
        finally:
            OWNER.reset(owner)
            exchange.end()
            exchange.record.outcome = classify_outcome(answer)
            exchange.record.error = answer.error

    async def _tokenize(
        self, request: GenerateRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """No mix is needed; the model has to exist."""
        try:
            self._routes.check(scope["path"], request.body, self._engine.vocabulary)
            self._experts.find(request.caller.tenant).catalog.read_wish(request.model, None)
        except RequestError as error:
            await failure_of(error).response()(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            """The engine is not asked: what vLLM fails at is the request."""
            await send({**message, "status": 400} if message.get("status") == 500 else message)

        await self._app(scope, receive, tell)


def classify_outcome(answer: Answer) -> str:
    """Return what the counter of requests calls an answer's end."""
    if answer.left or answer.status is None or not answer.ended:
        return "aborted"
    if answer.status < 400:
        return "ok"
    return "client_error" if answer.status < 500 else "error"
