"""The replica: Ray's `LLMServer` with a mix decided and bound before each request."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from adapters.mix import Mix
from router.policy import Prompt
from tta_serve import metrics
from tta_serve.answer import annotated, outcome
from tta_serve.engine.client import EngineClient
from tta_serve.engine.usage import CURRENT, Usage
from tta_serve.engine.wire import mix_request
from tta_serve.errors import error_response
from tta_serve.experiments.journal import Entry
from tta_serve.experiments.trials import Trials
from tta_serve.experts import Change, Experts
from tta_serve.plan import Plan
from tta_serve.protocol import Explained, ExplainRequest, RequestError
from tta_serve.reading import prompt_of, turn_of
from tta_serve.store.database import Database

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
        self._trials: Trials | None = None
        if plan.config.store is not None:
            self._trials = Trials(plan.config, await asyncio.to_thread(Database, plan.config.store.url), self._experts.hold)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().chat, request, raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().completions, request, raw_request_info)

    async def _merged(self, handler: Handler, request: Any, raw_request_info: Any) -> AsyncGenerator[Any, None]:
        """The life of a request: what is asked, which mix, bind it, let vLLM answer, say what was done."""
        headers = {} if raw_request_info is None else raw_request_info.headers
        with self._experts.hold() as view, metrics.counted() as count:
            entry = Entry(view)
            if self._trials:
                CURRENT.set(entry.usage)
            try:
                ask = view.catalog.ask(request.model, getattr(request, "merge", None))
                entry.prompt = prompt_of(request, headers, ask.preference, self._engine.text)
                ask = self._trials.ask(ask, request, headers, entry) if self._trials else ask
                count.policy = ask.label
                entry.routed = await view.router.route(ask, entry.prompt, turn_of(request, headers, entry.prompt.tenant))
            except RequestError as error:
                count.value = "client_error"
                yield error_response(error)
                return
            unseen = None
            if self._trials and self._trials.generates(entry):
                unseen = partial(self._unseen, handler, request.model_copy(deep=True))
            self._engine.bind(request, entry.routed.adapter)
            try:
                answer = await handler(request, raw_request_info)
                async with aclosing(annotated(answer, entry.routed, stream=bool(request.stream))) as items:
                    async for item in items:
                        count.value = entry.outcome = outcome(item)
                        yield item
            except Exception:
                entry.outcome = "error"
                raise
            except BaseException:
                entry.outcome = "aborted"
                raise
            finally:
                if self._trials:
                    self._trials.ended(entry, unseen)

    async def _unseen(self, handler: Handler, request: Any, mix: Mix) -> dict[str, Any]:
        """Answer a request once more, with another mix, for nobody: what it took."""
        usage, start = Usage(), time.perf_counter()
        CURRENT.set(usage)
        self._engine.bind(request, mix_request(mix, self._experts.current.digests))
        async for _ in await handler(request, None):
            pass
        took = 1e3 * (time.perf_counter() - start)
        return {"total_ms": took, "completion_tokens": usage.completion_tokens, "finish_reason": usage.finish_reason}

    async def entries(self) -> list[str]:
        """The entries that everybody can be answered with."""
        return sorted(self._experts.current.catalog.entries)

    def __del__(self) -> None:
        """Ray calls this once the replica's last request has ended."""
        if trials := getattr(self, "_trials", None):
            trials.close()

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
