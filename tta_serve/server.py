"""The replica: Ray's `LLMServer` with a mix decided and bound before each request."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from adapters.library import Library
from router.policy import Context
from tta_serve import metrics
from tta_serve.answer import annotated, outcome
from tta_serve.catalog import Catalog
from tta_serve.config import ServeConfig
from tta_serve.engine.client import EngineClient
from tta_serve.errors import error_response
from tta_serve.protocol import RequestError
from tta_serve.routing import Router, user_turn

Handler = Callable[..., Awaitable[AsyncGenerator[Any, None]]]


class MergingServer(LLMServer):  # type: ignore[misc]
    """One engine, its policies, and the OpenAI methods that Ray's ingress calls."""

    async def __init__(  # type: ignore[misc]
        self, llm_config: LLMConfig, *, config: ServeConfig, digests: dict[str, str], catalog: Catalog
    ) -> None:
        self._config = config
        self._digests = digests
        self._catalog = catalog
        await super().__init__(llm_config)

    async def start(self) -> None:
        await super().start()
        config, digests = self._config, self._digests
        self._engine = EngineClient(self.engine, config.model.id, digests, config.server.max_probe_tokens)
        library = Library.open(config.library.path)
        examples = {name: library.examples(name) for name in digests}
        context = Context(self._catalog.rules, examples, _everyday(config), self._engine)
        self._router = await Router.create(config, context, digests)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().chat, request, raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        return self._merged(super().completions, request, raw_request_info)

    async def _merged(self, handler: Handler, request: Any, raw_request_info: Any) -> AsyncGenerator[Any, None]:
        """The life of a request: what is asked, which mix, bind it, let vLLM answer, say what was done."""
        try:
            ask = self._catalog.ask(request.model, getattr(request, "merge", None))
        except RequestError as error:
            metrics.finished("none", "client_error")
            yield error_response(error)
            return
        with metrics.counted(ask.label) as count:
            routed = await self._router.route(ask, user_turn(request, self._engine.text))
            metrics.decided(routed.info, routed.mix)
            self._engine.bind(request, routed.mix)
            answer = await handler(request, raw_request_info)
            async with aclosing(annotated(answer, routed.info, stream=bool(request.stream))) as items:
                async for item in items:
                    count.value = outcome(item)
                    yield item

    async def metrics(self) -> str:
        """This replica's metrics, ours and vLLM's."""
        used, total = await self._engine.slots()
        metrics.slots_used.set(used)
        metrics.slots_total.set(total)
        return metrics.exposition()


def _everyday(config: ServeConfig) -> list[str]:
    file = config.library.everyday or files("router").joinpath("everyday.txt")
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
