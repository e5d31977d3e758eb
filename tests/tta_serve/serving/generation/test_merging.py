"""Requests that generate: every prompt that vLLM's app hands to its engine gets the mix of its
request, and no other.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm import SamplingParams
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError

from adapters.mix import Mix
from router.decision import Decision
from router.policies.static import StaticPolicy
from tests.factories.asgi import Got, asked, call, receiving, spoken
from tests.factories.counting_engine import CountingEngine
from tests.factories.kept_text import MemoryText
from tests.factories.placed_turns import Letters
from tests.tta_serve.serving.routing.test_dispatcher import CONFIG, DIGESTS, Table
from tta_serve import metrics
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.engine import wire
from tta_serve.engine.client.engine_client import EngineClient
from tta_serve.serving.access.admission import Admission, Budgets
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.access.quarantine import DEATHS, Quarantine
from tta_serve.serving.experts.pinned_requests import PinnedOffer
from tta_serve.serving.generation.merging import Merging
from tta_serve.serving.http import openai_errors
from tta_serve.serving.http.edge import Edge, EdgeRules
from tta_serve.serving.reading.catalog import Catalog
from tta_serve.serving.reading.routes import Routes
from tta_serve.serving.replica.model_names import serve_names
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe
from tta_serve.serving.trials.trials import Trials

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
VOCABULARY = 1000
ROOM = 4


class Llm:
    """Where vLLM's asynchronous engine stands: it answers one token, and notes how each prompt was
    run.

    Attributes:
        gate: Open while prompts may end.
        error: Raised after the first output.
        reason: With which prompts end.
    """

    logger_manager = None
    errored = False
    model_config = SimpleNamespace(max_model_len=64, get_vocab_size=lambda: VOCABULARY)

    def __init__(self) -> None:
        self.ran: list[tuple[list[int], Mapping[str, Any] | None, dict[str, Any]]] = []
        self.inside = self.most = self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.reason = "stop"

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            decode=lambda tokens: json.dumps({"sql": 1.0} if 1 in tokens else {"math": 1.0}),
            encode=Letters().encode,
        )

    async def collective_rpc(self, *args: Any) -> list[Any]:
        raise AssertionError

    async def generate(
        self, prompt: Any, params: Any, name: str, lora_request: Any = None, **options: Any
    ) -> AsyncIterator[Any]:
        mix = None if lora_request is None else wire.read_order(lora_request).mix
        self.ran.append((prompt["prompt_token_ids"], mix, options))
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.gate.wait()
            if self.error is not None:
                self.errored = isinstance(self.error, EngineDeadError)
                raise self.error
            samples = [
                CompletionOutput(k, "x", [7], None, None, finish_reason=self.reason)
                for k in range(params.n)
            ]
            yield RequestOutput(name, None, [1], None, samples, finished=True)
        finally:
            self.inside -= 1
            self.closed += 1

    @property
    def mixes(self) -> list[Mapping[str, Any] | None]:
        return [mix for _, mix, _ in self.ran]


class Desk:
    """vLLM's app, as far as it hands prompts over, with ours around it."""

    def __init__(self, most: int = 100, *, shows_prompts: bool = False) -> None:
        self.offers: list[PinnedOffer] = []
        self.llm, self.models = (
            Llm(),
            SimpleNamespace(base_model_paths=[SimpleNamespace(name="demo")]),
        )
        self.engine = EngineClient(self.llm, 32)
        serve_names(self.models)
        policies = {
            "table": Table(),
            "half": StaticPolicy(Mix.of({"sql": 0.5})),
            "base": StaticPolicy(Mix()),
        }
        self.probed = CountingEngine()
        probe = ViewProbe(self.probed, DIGESTS, ProbeCache())
        self.router = PolicyDispatcher(CONFIG, policies, {}, probe, Conversations(9, 9))
        self.view = SimpleNamespace(
            catalog=Catalog.of(CONFIG, tuple(DIGESTS), layers=2),
            router=self.router,
            digests=DIGESTS,
            versions={},
        )
        self.admission = Admission(ROOM, most)
        self.quarantine = Quarantine(MemoryText())
        fields = {
            TEXT: frozenset(
                {"model", "prompt", "n", "use_beam_search", "structured_outputs", "stream", "tools"}
            )
        }
        merging = Merging(
            self.vllm(),
            Routes(fields),
            self.engine,
            cast(Any, self),
            self.admission,
            Trials(),
            Budgets(),
            self.quarantine,
            shows_prompts=shows_prompts,
        )
        self.app = Edge(merging, EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None)))

    @property
    def current(self) -> Any:
        return self.view

    def find(self, tenant: str | None) -> Any:
        return self.view

    keeps_pinned = True

    def keep_pinned(self, offer: PinnedOffer) -> None:
        self.offers.append(offer)

    @contextmanager
    def hold(self, view: Any) -> Iterator[Any]:
        yield view

    def ask(self, body: Any, path: str = TEXT) -> Got:
        return asked(self.app, "POST", path, spoken(body))

    def vllm(self) -> FastAPI:
        app = FastAPI()

        async def one(body: Any, tokens: list[int], name: str) -> list[Any]:
            params = SamplingParams(n=body.get("n", 1))
            if body.get("structured_outputs"):
                params.structured_outputs = StructuredOutputsParams(**body["structured_outputs"])
            outputs = self.llm.generate(
                {"prompt_token_ids": tokens}, params, name, lora_request="vLLM's own", priority=0
            )
            return [output async for output in outputs]

        async def beams(body: Any, tokens: list[int]) -> None:
            for step in range(3):
                steps = [one({}, [*tokens, i], f"{step}-{i}") for i in range(2)]
                await asyncio.gather(*(asyncio.create_task(step) for step in steps))

        @app.post(TEXT)
        # It reads what is no stream in a task of its own.
        @with_cancellation  # type: ignore[untyped-decorator]
        async def completions(body: dict[str, Any], raw_request: Request) -> Response:
            prompts = [p if isinstance(p, list) else [10 + i] for i, p in enumerate(body["prompt"])]
            if body.get("use_beam_search"):
                await asyncio.gather(*(asyncio.create_task(beams(body, p)) for p in prompts))
            else:
                handed = [one(body, tokens, str(i)) for i, tokens in enumerate(prompts)]
                await asyncio.gather(*handed)
            return JSONResponse({"id": "c", "model": self.models.model_name(None)})

        @app.post(CHAT)
        async def chat(request: Request) -> Response:
            async def chunks() -> AsyncIterator[str]:
                await one({}, [3], "chat")
                yield 'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
                yield "data: [DONE]\n\n"

            return StreamingResponse(chunks(), media_type="text/event-stream")

        @app.post("/tokenize")
        async def tokenize() -> dict[str, int]:
            return {"count": 0}

        openai_errors.install(app)
        return app


def said(**scores: float) -> str:
    """A prompt that the policy `table` reads."""
    return json.dumps(scores)


SQL = {DIGESTS["sql"]: 1.0}
MATH = {DIGESTS["math"]: 1.0}


def body(*prompts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": [*prompts], **more}


def test_a_prompt_has_the_mix_that_its_request_asks_for_and_the_name_it_was_asked_under() -> None:
    desk = Desk()
    for asks, mix, name, experts in (
        (body("x") | {"model": "demo:sql"}, SQL, "demo:sql", {"sql": 1.0}),
        (body("x") | {"model": "sql"}, SQL, "sql", {"sql": 1.0}),
        (body("x") | {"model": "demo:base"}, None, "demo:base", {}),
        (body("x", merge={"experts": {"math": 1}}), MATH, "demo", {"math": 1.0}),
        (body(said(math=1.0)), MATH, "demo", {"math": 1.0}),
    ):
        got = desk.ask(asks)
        assert (got.status, got.json["model"]) == (200, name)
        assert desk.llm.mixes[-1] == mix
        assert got.json["merge"]["experts"] == experts
    assert desk.llm.ran[-1][2] == {"priority": 0}, (
        "what vLLM says of an adapter is dropped, all else handed on"
    )


def test_what_was_answered_by_one_pinned_expert_is_offered_as_an_example_of_it() -> None:
    desk = Desk()
    for asks in (
        body("x") | {"model": "demo:sql", "user": "u"},
        body("y") | {"model": "math"},
        body("x") | {"model": "demo:base"},
        body("x", merge={"experts": {"math": 1}}),
        body(said(math=1.0)),
        body("x", n=1000) | {"model": "sql"},  # refused
    ):
        desk.ask(asks)
    assert [(one.expert, one.prompt.user_turn, one.tenant) for one in desk.offers] == [
        ("sql", "x", None),
        ("math", "y", None),
    ]
    assert desk.offers[0].view is desk.current
    desk.llm.error = RuntimeError("no pass")
    assert desk.ask(body("x") | {"model": "sql"}).status == 500
    assert len(desk.offers) == 2, "what failed is an example of nothing"


def test_each_of_several_prompts_has_its_own_mix_in_their_order() -> None:
    desk = Desk()
    got = desk.ask(body(said(math=1.0), said(sql=1.0), said(math=0.1), [1], [5]))
    ran = {tokens[0]: mix for tokens, mix, _ in desk.llm.ran}
    assert ran == {10: MATH, 11: SQL, 12: None, 1: SQL, 5: MATH}
    prompts = got.json["merge"]["prompts"]
    assert [one["experts"] for one in prompts] == [
        {"math": 1.0},
        {"sql": 1.0},
        {},
        {"sql": 1.0},
        {"math": 1.0},
    ]
    assert got.headers["x-tta-policy"] == "table"
    assert "x-tta-mix" not in got.headers


def test_all_steps_of_a_beam_search_are_run_as_its_one_prompt() -> None:
    desk = Desk()
    got = desk.ask(body(said(sql=1.0), use_beam_search=True, n=2))
    assert desk.llm.mixes == [SQL] * 6
    assert "prompts" not in got.json["merge"]
    assert desk.probed.asked == [("features", said(sql=1.0))], "decided once"


SEGMENTS = {"segments": [{"sql": 1}, {}, {"math": 0.5}]}


def test_segments_are_answered_one_after_the_other_and_said() -> None:
    desk = Desk()
    got = desk.ask(body("x", merge=SEGMENTS))
    assert desk.llm.mixes == [SQL, None, {DIGESTS["math"]: 0.5}]
    assert desk.llm.most == 1, "one room is enough"
    merge = got.json["merge"]
    assert (merge["policy"], merge["experts"]) == ("explicit", {"sql": 1.0})
    assert merge["segments"] == [
        {"since": 0, "experts": {"sql": 1.0}},
        {"since": 1, "experts": {}},
        {"since": 2, "experts": {"math": 0.5}},
    ]
    desk.llm.reason = "length"
    assert desk.ask(body("x", merge=SEGMENTS)).json["merge"]["segments"] is None
    assert desk.llm.mixes[3:] == [SQL]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"use_beam_search": True},
        {"structured_outputs": {"choice": ["x"]}},
        {"tools": [{}]},
    ],
)
def test_what_cannot_be_in_segments_is_refused_or_said(more: dict[str, Any]) -> None:
    desk = Desk()
    got = desk.ask(body("x", merge=SEGMENTS, **more))
    assert got.status == 400
    assert got.json["error"]["param"] == "merge.segments"
    assert desk.llm.mixes == []
    both = Decision(Mix.of({"sql": 0.5}), then=(Mix.of({"math": 1.0}),))
    cast(Any, desk.router.policies["half"])._decision = both
    merge = desk.ask(body("x", merge={"policy": "half"}, **more)).json["merge"]
    assert set(map(str, desk.llm.mixes)) == {str({DIGESTS["sql"]: 0.5})}
    assert merge["segments"] is None
    assert "only the first segment" in merge["warnings"][0]


def test_a_stream_is_routed_like_any_other_answer() -> None:
    desk = Desk()
    message = {"role": "user", "content": said(math=1.0)}
    got = desk.ask({"model": "demo", "messages": [message]}, CHAT)
    assert desk.llm.mixes == [MATH]
    assert got.headers["x-tta-policy"] == "table"
    assert json.loads(got.parts[0].removeprefix(b"data: "))["merge"]["experts"] == {"math": 1.0}


def test_a_prompt_of_nobodys_request_is_run_as_the_base() -> None:
    desk = Desk()

    async def run() -> None:
        params = SamplingParams()
        async for _ in desk.llm.generate({"prompt_token_ids": [1]}, params, "x", lora_request="y"):
            pass

    asyncio.run(run())
    assert desk.llm.mixes == [None]


def test_requests_at_the_same_time_are_not_taken_for_one_another() -> None:
    desk = Desk()

    async def run() -> list[Got]:
        kinds = ["sql", "math"] * 20
        asks = [
            call(desk.app, "POST", TEXT, spoken(body("x") | {"model": f"demo:{kind}"}))
            for kind in kinds
        ]
        return await asyncio.gather(*asks)

    for i, got in enumerate(asyncio.run(run())):
        name = ["sql", "math"][i % 2]
        assert (got.json["model"], got.json["merge"]["experts"]) == (f"demo:{name}", {name: 1.0})
    assert desk.llm.most <= ROOM
    assert desk.llm.mixes.count(SQL) == desk.llm.mixes.count(MATH) == 20


def test_what_is_cut_off_at_its_deadline_leaves_the_engine_and_the_queue() -> None:
    desk = Desk()

    async def run() -> None:
        desk.llm.gate.clear()
        headers = {"x-request-timeout": "0.2"}
        prompts = spoken(body(*"abcdef") | {"model": "sql"})  # two more than there is room for
        got = await call(desk.app, "POST", TEXT, prompts, headers=headers)
        assert got.status == 408
        await asyncio.sleep(0.01)
        assert (desk.llm.inside, desk.llm.closed) == (0, ROOM)

        desk.llm.gate.set()
        full = spoken(body("x", n=ROOM) | {"model": "sql"})
        asks = [call(desk.app, "POST", TEXT, full) for _ in range(3)]
        assert {got.status for got in await asyncio.gather(*asks)} == {200}

    asyncio.run(run())
    assert len(desk.llm.ran) == ROOM + 3, "none of those that waited came in"


@pytest.mark.parametrize(
    ("asks", "status", "param"),
    [
        (body("x") | {"model": "nope"}, 404, "model"),
        (body("x", merge={"polcy": "base"}), 400, "merge.polcy"),
        (body("x", merge={"policy": "nope"}), 400, "merge.policy"),
        (body("x", merges={}), 400, "merges"),
        (body([VOCABULARY]), 400, "prompt"),
        (body("x", n=101), 400, None),
        (body("rubbish"), 400, "merge"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_counted(
    asks: Any, status: int, param: str | None
) -> None:
    desk = Desk()
    before = _counted("client_error")
    got = desk.ask(asks)
    assert (got.status, got.error["param"]) == (status, param)
    assert desk.llm.ran == []
    assert _counted("client_error") == before + 1


def _counted(outcome: str) -> float:
    samples = next(iter(metrics.requests.collect())).samples
    return sum(
        one.value
        for one in samples
        if one.labels.get("outcome") == outcome and one.name.endswith("_total")
    )


def test_too_many_at_once_are_429_and_others_are_answered() -> None:
    desk = Desk(most=10)

    async def run() -> list[Got]:
        desk.llm.gate.clear()
        large = spoken(body(said(sql=1.0), said(math=1.0), n=4))
        asks = [asyncio.create_task(call(desk.app, "POST", TEXT, large)) for _ in range(3)]
        await asyncio.sleep(0.1)
        desk.llm.gate.set()
        return await asyncio.gather(*asks)

    first, *others = asyncio.run(run())
    assert first.status == 200
    for late in others:
        assert (late.status, late.error["code"], late.headers["retry-after"]) == (
            429,
            "overloaded",
            "1",
        )
    assert desk.ask(body(said(sql=1.0))).status == 200


def test_what_ends_the_engine_again_and_again_is_refused_and_nothing_else() -> None:
    desk = Desk()
    bad = {"model": "demo:sql", "prompt": "x"}
    for _ in range(DEATHS):
        desk.llm.error = EngineDeadError()
        assert desk.ask(bad).status == 503
        assert desk.ask({**bad, "prompt": "late"}).status == 503, "it came after the death"
        desk.llm.error, desk.llm.errored = None, False
    refused = desk.ask({**bad, "stream": True})
    assert refused.status == 422
    assert f"the engine died {DEATHS} times" in refused.error["message"]
    for other in ("y", "late"):
        assert desk.ask({**bad, "prompt": other}).status == 200
    assert metrics.suspects._value.get() == 1


def test_an_engine_that_has_died_is_503_and_what_it_says_is_not_told() -> None:
    desk = Desk()
    desk.llm.error = EngineDeadError()
    before = _counted("error")
    got = desk.ask(body(said(sql=1.0)))
    assert (got.status, got.error["code"], got.headers["retry-after"]) == (503, "unavailable", "30")
    assert _counted("error") == before + 1


def test_a_format_that_cannot_be_kept_to_is_the_requests_mistake() -> None:
    desk = Desk()
    desk.llm.reason = "error"
    got = desk.ask(body(said(sql=1.0), structured_outputs={"regex": "["}))
    assert (got.status, got.error["param"]) == (400, "structured_outputs.regex")
    assert "cannot be compiled" in got.error["message"]


def test_what_of_a_request_is_not_heeded_stands_in_its_answer() -> None:
    got = Desk().ask(body(said(sql=1.0), nonsense=1, merge={"experts": {"sql": 1, "math": 0.01}}))
    assert sorted(got.json["merge"]["warnings"]) == [
        "merge.experts.math: a coefficient below half of the grid of 0.05 was taken as 0",
        "nonsense: unknown, ignored",
    ]


def test_a_client_that_leaves_ends_its_prompts_and_leaves_its_room() -> None:
    desk = Desk()
    before = _counted("aborted")

    async def run() -> None:
        desk.llm.gate.clear()
        prompts = [said(sql=1.0)] * 9
        task = asyncio.create_task(call(desk.app, "POST", TEXT, spoken(body(*prompts))))
        while len(desk.llm.ran) < ROOM:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert (desk.llm.inside, desk.llm.closed) == (0, ROOM)
        desk.llm.gate.set()
        assert (await call(desk.app, "POST", TEXT, spoken(body(*prompts)))).status == 200

    asyncio.run(run())
    assert _counted("aborted") == before + 1


def test_tokens_are_counted_for_known_models_only() -> None:
    desk = Desk()
    assert desk.ask({"model": "demo:sql", "prompt": "x"}, "/tokenize").json == {"count": 0}
    assert (
        desk.ask({"model": "nope", "prompt": "x"}, "/tokenize").error["code"] == "model_not_found"
    )
    assert desk.ask({"tokens": [VOCABULARY]}, "/tokenize").error["param"] == "tokens"


def test_other_routes_are_vllms() -> None:
    desk = Desk()
    reached = []

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])
        await JSONResponse({})(scope, receive, send)

    merging = Merging(
        other,
        Routes({}),
        desk.engine,
        cast(Any, desk),
        desk.admission,
        Trials(),
        Budgets(),
        desk.quarantine,
    )
    for path in ("/version", "/v1/models", "/v1/completions/x"):
        assert (
            asked(
                Edge(merging, EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None))),
                "POST",
                path,
                b'{"model": "nope"}',
            ).status
            == 200
        )
    assert reached == ["/version", "/v1/models", "/v1/completions/x"]
    assert asked(merging, "POST", TEXT, receive=receiving(b"[]")).status == 200, "which refuses it"
