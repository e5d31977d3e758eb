"""The replica: Ray's `LLMServer` with a mix decided and bound before each request."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from router.policy import Prompt
from tta_serve import metrics
from tta_serve.answer import annotated, outcome
from tta_serve.engine.client import EngineClient
from tta_serve.errors import error_response
from tta_serve.experts import Change, Experts
from tta_serve.plan import Plan
from tta_serve.protocol import Explained, ExplainRequest, RequestError
from tta_serve.reading import prompt_of, turn_of

Handler = Callable[..., Awaitable[AsyncGenerator[Any, None]]]


class MergingServer(LLMServer):  # type: ignore[misc]
    """One engine, its policies, and the OpenAI methods that Ray's ingress calls."""

    async def __init__(self, llm_config: LLMConfig, *, plan: Plan) -> None:  # type: ignore[misc]
        """Reads the library anew: a replica that starts again finds it as it is now."""
        self._plan = Plan.of(plan.config)
        llm_config.update_engine_kwargs(**self._plan.engine_args())
        await super().__init__(llm_config)

    async def start(self) -> None:
        await super().start()
        plan = self._plan
        self._engine = EngineClient(self.engine, plan.config.model.id, plan.config.server.max_probe_tokens)
        self._experts = Experts(plan.config, plan.layers, self._engine)
        await self._experts.open(plan.digests)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().chat, request, raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().completions, request, raw_request_info)

    async def _merged(self, handler: Handler, request: Any, raw_request_info: Any) -> AsyncGenerator[Any, None]:
        """The life of a request: what is asked, which mix, bind it, let vLLM answer, say what was done."""
        headers = {} if raw_request_info is None else raw_request_info.headers
        with self._experts.hold() as view, metrics.counted() as count:
            try:
                ask = view.catalog.ask(request.model, getattr(request, "merge", None))
                count.policy = ask.label
                prompt = prompt_of(request, headers, ask.preference, self._engine.text)
                routed = await view.router.route(ask, prompt, turn_of(request, headers, prompt.tenant))
            except RequestError as error:
                count.value = "client_error"
                yield error_response(error)
                return
            self._engine.bind(request, routed.adapter)
            answer = await handler(request, raw_request_info)
            async with aclosing(annotated(answer, routed, stream=bool(request.stream))) as items:
                async for item in items:
                    count.value = outcome(item)
                    yield item

    async def models(self) -> list[str]:
        """All model names a client may send."""
        return self._experts.current.catalog.models()

    async def experts(self) -> dict[str, Any]:
        return await self._experts.report()

    async def policies(self) -> dict[str, Any]:
        return self._experts.current.router.listed()

    async def explain(self, ask: ExplainRequest) -> list[Explained] | RequestError:
        """What policies would do with a prompt. Returns the refusal, as `stage` does."""
        with self._experts.hold() as view:
            try:
                return await view.router.explain(Prompt(ask.prompt), ask.policies)
            except RequestError as error:
                return error

    async def stage(self, change: Change) -> RequestError | None:
        """Do what can fail of a change. Returns the refusal, which Ray would wrap if it were raised."""
        try:
            await self._experts.stage(change)
        except RequestError as error:
            return error
        return None

    async def commit(self) -> None:
        await self._experts.commit()

    async def discard(self) -> None:
        await self._experts.discard()

    async def metrics(self) -> str:
        """This replica's metrics, ours and vLLM's."""
        used, total = await self._engine.workers.slots()
        metrics.slots_used.set(used)
        metrics.slots_total.set(total)
        return metrics.exposition()
