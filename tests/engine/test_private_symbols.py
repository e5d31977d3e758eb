"""Every private thing of vLLM and Ray that we rely on, at the pinned versions.

An upgrade that moves one fails here first.
"""

import inspect
import re
from importlib.metadata import version
from pathlib import Path


def test_the_versions_are_the_ones_this_was_read_at() -> None:
    import vllm

    assert version("ray") == "2.60.0"
    assert vllm.__version__.split("+")[0] == "0.29.0"


def test_vllm_model_runners_build_the_manager_from_the_name_we_replace() -> None:
    import vllm.v1.worker.lora_model_runner_mixin as mixin
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    from tta_serve.engine.worker.mixture_manager import MixtureManager
    from tta_serve.engine.worker.plugin import register

    source = inspect.getsource(mixin.LoRAModelRunnerMixin.load_lora_model)
    assert "LRUCacheWorkerLoRAManager(" in source
    register()
    register()
    assert getattr(mixin.LRUCacheWorkerLoRAManager, "_tta_serve", False)
    runner = inspect.getsource(mixin)
    for name in (
        "set_active_adapters",
        "add_dummy_lora",
        "get_dummy_lora_warmup_rank",
        "dummy_lora_cache",
    ):
        assert f"lora_manager.{name}(" in runner
    for name in [n for n in vars(LRUCacheWorkerLoRAManager.__mro__[1]) if not n.startswith("_")]:
        assert hasattr(MixtureManager, name), f"vLLM's manager has {name}, ours has not"


def test_vllm_chooses_kernels_for_routed_experts_by_the_config_we_replace() -> None:
    from vllm.model_executor.layers.fused_moe import layer

    source = inspect.getsource(layer.FusedMoEFactory)
    assert "moe_config = FusedMoEConfig(" in source
    assert "is_lora_enabled=vllm_config.lora_config is not None," in source
    assert "runner_cls = MoERunner" in source


def test_blocks_of_the_prefix_cache_are_keyed_by_the_function_we_wrap() -> None:
    from vllm.v1.core import block_pool, kv_cache_utils

    from tta_serve.engine.worker.plugin import register

    register()
    for module in (kv_cache_utils, block_pool):
        assert hasattr(module.generate_block_hash_extra_keys, "__wrapped__")
    stock = inspect.unwrap(kv_cache_utils.generate_block_hash_extra_keys)
    assert [*inspect.signature(stock).parameters] == [
        "request",
        "start_token_idx",
        "end_token_idx",
        "start_mm_idx",
    ]
    assert "lora_extra_keys + mm_extra_keys" in inspect.getsource(stock), "the name comes first"
    hasher = inspect.getsource(kv_cache_utils.get_request_block_hasher)
    assert "= generate_block_hash_extra_keys(" in hasher
    assert "caching_hash_fn, prev_block_hash_value, block_tokens, extra_keys" in hasher


def test_linear_layers_go_through_their_quant_method() -> None:
    from vllm.model_executor.layers import linear

    for layer in (linear.ReplicatedLinear, linear.ColumnParallelLinear, linear.RowParallelLinear):
        assert "self.quant_method.apply(self, " in inspect.getsource(layer.forward)
    for layer in (linear.MergedColumnParallelLinear, linear.QKVParallelLinear):
        assert layer.forward is linear.ColumnParallelLinear.forward


def test_heads_are_multiplied_by_in_the_method_we_replace() -> None:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    assert list(inspect.signature(LogitsProcessor._apply_head).parameters)[1:] == [
        "lm_head",
        "hidden_states",
        "embedding_bias",
    ]
    for method in ("_get_logits", "get_top_tokens", "get_top_k_tokens"):
        source = inspect.getsource(getattr(LogitsProcessor, method))
        assert "logits = self._apply_head(lm_head, hidden_states, embedding_bias)" in source
    fields = inspect.getsource(VocabParallelEmbedding)
    for name in (
        "org_vocab_size",
        "num_embeddings_per_partition",
        "shard_indices",
        "embedding_dim",
    ):
        assert f"self.{name} = " in fields
    assert "tensor_model_parallel_all_reduce(output_parallel)" in inspect.getsource(
        VocabParallelEmbedding.forward
    ), "what we add to is the whole of an embedding"


def test_it_is_known_which_tokens_logits_are_of() -> None:
    from vllm.lora.layers import LoRAMapping
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert {"index_mapping", "prompt_mapping"} <= LoRAMapping.__dataclass_fields__.keys()
    source = inspect.getsource(InputBatch.make_lora_inputs)
    assert "req_lora_mapping.repeat(num_sampled_tokens)" in source
    source = inspect.getsource(GPUModelRunner._prepare_inputs)
    assert "logits_indices = query_start_loc[1:] - 1" in source
    assert "num_sampled_tokens = np.ones(num_reqs, dtype=np.int32)" in source
    assert "num_sampled_tokens = num_draft_tokens + 1" in source
    source = inspect.getsource(GPUModelRunner._get_prompt_logprobs_dict)
    assert "prompt_hidden_states = hidden_states[offset : offset + num_logits]" in source
    assert "self.model.compute_logits(prompt_hidden_states)" in source


def test_layers_that_are_read_and_not_called_are_told_by_what_we_look_at() -> None:
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention
    from vllm.model_executor.layers.mamba import mamba_mixer2, short_conv
    from vllm.model_executor.models.interfaces import SupportsMultiModal

    assert "self.kv_b_proj = kv_b_proj" in inspect.getsource(MLAAttention.__init__)
    for module in (mamba_mixer2, short_conv):
        assert re.search(
            r"(self\.conv\w*)\.weight\.data = \1\.weight\.data\.unsqueeze\(1\)",
            inspect.getsource(module),
        )
    assert callable(SupportsMultiModal.get_language_model)


def test_models_are_called_so_that_their_output_passes_our_hook() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "return self.model(" in inspect.getsource(GPUModelRunner._model_forward)
    source = inspect.getsource(GPUModelRunner.execute_model)
    assert "sample_hidden_states = hidden_states[logits_indices]" in source, (
        "they are one for each token, in order"
    )
    assert "self.model.compute_logits(sample_hidden_states)" in source


def test_the_model_runner_says_where_requests_stand_and_hands_on_what_was_decided() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import output_processor
    from vllm.v1.outputs import AsyncModelRunnerOutput
    from vllm.v1.worker import gpu_input_batch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    from tta_serve.engine.worker.plugin import register

    register()
    source = inspect.getsource(GPUModelRunner)
    assert re.search(
        r"self.set_active_loras\(\s+self.input_batch, num_scheduled_tokens, num_sampled_tokens",
        source,
    )
    for name in ("req_ids", "num_computed_tokens_cpu"):
        assert f"{name}" in inspect.getsource(gpu_input_batch.InputBatch)
    for name in ("lora_request", "sampling_params"):
        assert f"{name}: " in inspect.getsource(gpu_input_batch.CachedRequestState)
    wrapped = (
        LoRAModelRunnerMixin.set_active_loras,
        GPUModelRunner.sample_tokens,
        GPUModelRunner._get_prompt_logprobs_dict,
        Scheduler.update_from_output,
    )
    files = [(m.__code__.co_filename, m.__wrapped__.__code__.co_filename) for m in wrapped]
    for ours, theirs in files:
        assert "tta_serve" in ours
        assert "tta_serve" not in theirs, "wrapped once, however often we register"
    assert CPUModelRunner.sample_tokens is GPUModelRunner.sample_tokens
    assert AsyncScheduler.update_from_output is Scheduler.update_from_output
    assert AsyncModelRunnerOutput.__abstractmethods__ == {"get_output"}
    assert "kv_transfer_params = engine_core_output.kv_transfer_params" in inspect.getsource(
        output_processor.OutputProcessor
    )


def test_which_model_runner_is_used_is_a_property_of_the_configuration() -> None:
    from vllm.config import VllmConfig
    from vllm.v1.worker import gpu_worker

    assert isinstance(VllmConfig.__dict__["use_v2_model_runner"], property)
    assert "vllm_config.use_v2_model_runner" in inspect.getsource(gpu_worker)


def test_the_second_model_runner_has_the_places_at_which_we_meet_it() -> None:
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.lora_utils import LoraState
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    assert {
        "req_ids",
        "query_start_loc_np",
        "num_computed_tokens_np",
        "num_scheduled_tokens",
    } <= InputBatch.__dataclass_fields__.keys()
    step = inspect.getsource(GPUModelRunner.execute_model)
    prepared, active = step.index("self.prepare_inputs("), step.index("self._set_active_loras(")
    assert prepared < active, "the manager is told of a step's requests before it plans the step"
    assert "self.lora_ids = np.zeros(max_num_reqs, dtype=np.int32)" in inspect.getsource(
        LoraState.__init__
    )
    assert "self.lora_requests[req_id] = lora_request" in inspect.getsource(LoraState.add_request)
    parameters = inspect.signature(PromptLogprobsWorker.compute_prompt_logprobs).parameters
    assert [*parameters][1:3] == ["logits_fn", "hidden_states"]
    assert "compute_prompt_logprobs(\n            self.model.compute_logits," in inspect.getsource(
        GPUModelRunner.sample_tokens
    )
    assert CPUModelRunner.sample_tokens is GPUModelRunner.sample_tokens


def test_the_prefix_cache_is_keyed_by_the_adapters_name() -> None:
    from vllm.v1.core import kv_cache_utils

    assert "request.lora_request.lora_name" in inspect.getsource(
        kv_cache_utils._gen_lora_extra_hash_keys
    )


def test_adapter_ids_are_carried_in_64_bits() -> None:
    from vllm.v1.worker.gpu_input_batch import InputBatch

    assert (
        "request_lora_mapping = np.zeros((self.max_num_reqs,), dtype=np.int64)"
        in inspect.getsource(InputBatch.__init__)
    )


def test_every_route_that_generates_hands_its_prompts_to_generate_which_we_replace() -> None:
    """With these arguments, and from nowhere else that is served."""
    from vllm import entrypoints

    calls = "engine_client.generate("
    served = {
        "openai/chat_completion/serving.py",
        "openai/chat_completion/batch_serving.py",
        "openai/completion/serving.py",
        "openai/responses/serving.py",
        "generate/beam_search/online.py",
    }
    not_served = {
        "generate/generative_scoring/serving.py",
        "scale_out/token_in_token_out/serving.py",
        "speech_to_text/base/serving.py",
        "speech_to_text/realtime/connection.py",
    }
    root = Path(entrypoints.__path__[0])
    found = {
        str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in root.rglob("*.py")
    }
    callers = {name: text for name, text in found.items() if calls in text}
    assert callers.keys() == served | not_served
    for name in served:
        for call in callers[name].split(calls)[1:]:
            positional = call.lstrip().split(",")[:3]
            assert len(positional) == 3, name
            assert not any("=" in one for one in positional), (
                "prompt, params and request_id have no names"
            )
            assert "lora_request=" in call[:400]
    assert not [
        name
        for name in served
        if ".beam_search(" in found[name] and "self.beam_search(" not in found[name]
    ]


def test_beam_search_and_batches_call_it_in_the_context_of_their_request() -> None:
    """They do in tasks made on the spot, which copy the context.

    A thread or a queue would lose whose prompt it is.
    """
    from vllm.entrypoints.generate.beam_search import online
    from vllm.entrypoints.serve.utils import api_utils

    assert "asyncio.create_task(" in inspect.getsource(online)
    assert "asyncio.create_task(handler_func(" in inspect.getsource(api_utils.with_cancellation)


def test_messages_of_anthropic_are_chats() -> None:
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    assert issubclass(AnthropicServingMessages, OpenAIServingChat)
    assert "self.create_chat_completion(" in inspect.getsource(
        AnthropicServingMessages.create_messages
    )


def test_names_of_models_are_checked_and_told_by_what_we_replace() -> None:
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.serve.engine import serving as engine_serving

    servings = (
        OpenAIServingChat,
        OpenAIServingChatBatch,
        OpenAIServingCompletion,
        OpenAIServingResponses,
    )
    for serving in servings:
        source = inspect.getsource(serving)
        assert "self.models.model_name(lora_request)" in source
        assert not re.search(r"base_model_paths|models\.registry", source), (
            "a way around model_name"
        )
    assert "self.models.is_base_model(model_name)" in inspect.getsource(engine_serving)
    assert list(inspect.signature(OpenAIServingModels.model_name).parameters) == [
        "self",
        "lora_request",
    ]
    assert list(inspect.signature(OpenAIServingModels.is_base_model).parameters) == [
        "self",
        "model_name",
    ]
    assert "self.base_model_paths = base_model_paths" in inspect.getsource(
        OpenAIServingModels.__init__
    )


def test_names_are_served_as_they_were_asked_for() -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from tta_serve.engine.client.engine_client import OWNER
    from tta_serve.serving.replica.model_names import serve_names

    models: Any = SimpleNamespace(base_model_paths=[SimpleNamespace(name="demo")])
    serve_names(models)
    assert models.is_base_model("anything at all")
    assert models.model_name() == models.model_name(None) == "demo"
    for asked, told in (("demo:sql", "demo:sql"), (None, "demo")):
        token = OWNER.set(cast(Any, SimpleNamespace(model=asked)))
        try:
            assert models.model_name(lora_request=None) == told
        finally:
            OWNER.reset(token)


def test_a_requests_id_need_not_be_its_own() -> None:
    """Clients choose `x-request-id`, and may send one twice at the same time."""
    from vllm.v1.engine.input_processor import InputProcessor

    source = inspect.getsource(InputProcessor.assign_request_id)
    assert "external_req_id = request.request_id" in source
    assert "random_uuid()" in source


def test_headers_that_vllm_and_ray_take_orders_by_are_among_those_we_drop() -> None:
    from ray.serve._private import constants
    from vllm.entrypoints.generate.base import serving
    from vllm.entrypoints.openai.chat_completion import api_router

    from tta_serve.serving.http.edge import NOT_FROM_CLIENTS
    from tta_serve.serving.http.proxy_middleware import FOR_RAY

    names = [
        serving.SESSION_ID_HEADER,
        serving.PRIORITY_HEADER,
        api_router.ENDPOINT_LOAD_METRICS_FORMAT_HEADER_LABEL,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        f"{constants.SERVE_INGRESS_ROUTER_HEADER_PREFIX}x",
        "X-data-parallel-rank",
    ]
    for name in names:
        assert NOT_FROM_CLIENTS.fullmatch(name.lower()), name
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER == "x-request-id", "which is ours by then"
    for name in (
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    ):
        assert FOR_RAY.fullmatch(name.lower().encode()), name
    read = re.compile(r"raw_request\.headers\.get\(\s*([^)]*?)\s*\)")
    root = Path(inspect.getfile(serving)).parents[2]
    left_out = ("cohere", "scale_out", "speech_to_text", "pooling", "sagemaker")
    files = [file for file in root.rglob("*.py") if not set(file.parts) & {*left_out}]
    found = {
        name.partition(",")[0]
        for file in files
        for name in read.findall(file.read_text(encoding="utf-8"))
    }
    assert found == {
        '"X-data-parallel-rank"',
        "SESSION_ID_HEADER",
        "PRIORITY_HEADER",
        "ENDPOINT_LOAD_METRICS_FORMAT_HEADER_LABEL",
        '"X-Request-Id"',
        '"content-type"',
    }


def test_vllms_errors_are_of_the_kinds_we_tell_apart() -> None:
    from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMClientError, VLLMServerError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    for kind in (EngineDeadError, EngineGenerateError, GenerationError):
        assert issubclass(kind, VLLMServerError)
        assert not issubclass(kind, (VLLMClientError, ValueError, TypeError))
    assert not issubclass(GracefulHTTPError, (VLLMClientError, VLLMServerError))
    assert not issubclass(VLLMClientError, ValueError)


def test_async_llm_is_what_the_client_calls() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    for name in ("generate", "collective_rpc", "get_tokenizer"):
        assert callable(getattr(AsyncLLM, name))
    assert "if self.gauge_lora_info is not None" in inspect.getsource(PrometheusStatLogger.record)
    for name in ("logger_manager", "model_config"):
        assert f"self.{name} = " in inspect.getsource(AsyncLLM.__init__)


def test_vllm_makes_its_span_below_the_one_that_headers_name_by_the_endpoint_of_its_config() -> (
    None
):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import RequestOutput
    from vllm.tracing import otel
    from vllm.v1.engine.async_llm import AsyncLLM

    assert "otlp_traces_endpoint" in inspect.signature(AsyncEngineArgs).parameters
    assert "trace_headers" in inspect.signature(AsyncLLM.generate).parameters
    export = inspect.getsource(otel.get_span_exporter)
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" in export
    assert '"http/protobuf"' in export
    assert "num_cached_tokens" in inspect.signature(RequestOutput).parameters


def test_ray_has_the_parts_we_reach_for() -> None:
    from ray.llm._internal.serve.core.server.llm_server import LLMServer
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
    from ray.serve.llm import deployment

    from tta_serve.serving import ray_private

    assert all(hasattr(ray_private, name) for name in ray_private.__all__)
    assert deployment.LLMServer is LLMServer or issubclass(deployment.LLMServer, LLMServer)
    source = inspect.getsource(VLLMEngine)
    assert "self._engine_client = self._start_async_llm_engine(" in source
    assert inspect.iscoroutinefunction(VLLMEngine.build_asgi_app)
    build = inspect.getsource(VLLMEngine.build_asgi_app)
    assert "app = build_app(" in build
    assert "app.state._state.update(self._app_state._state)" in build, (
        "openai_serving_models is in it"
    )
    for name in ("__init__", "start", "check_health", "__del__", "__serve_build_asgi_app__"):
        assert inspect.iscoroutinefunction(getattr(LLMServer, name)), name
    assert "await self.start()" in inspect.getsource(LLMServer.__init__)


def test_ray_builds_direct_streaming_from_the_parts_that_we_call() -> None:
    from ray import serve
    from ray.llm._internal.serve import constants as llm_constants
    from ray.llm._internal.serve.core.ingress import builder
    from ray.serve._private import constants, http_util, replica
    from ray.serve.llm import build_llm_deployment

    server = inspect.signature(build_llm_deployment).parameters
    assert {
        "llm_config",
        "deployment_cls",
        "bind_kwargs",
        "override_serve_options",
    } <= server.keys()
    direct = inspect.getsource(builder._build_direct_streaming_llm_deployment)
    assert "deployment_cls=serve.ingress()(server_cls)" in direct, "as we do"
    router = inspect.signature(builder._build_openai_ingress_request_router).parameters
    assert [*router] == ["server", "llm_config"]
    assert callable(serve.Application._with_ingress_request_router)
    assert replica.SERVE_BUILD_ASGI_APP_METHOD == "__serve_build_asgi_app__"
    # The variables of the environment under which it does what we want.
    assert '"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"' in inspect.getsource(llm_constants)
    source = inspect.getsource(constants)
    for name in (
        "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
    ):
        assert f'"{name}"' in source, name
    assert "must be Starlette middlewares" in inspect.getsource(http_util)


def test_ray_adds_the_requests_id_to_answers_by_itself() -> None:
    from ray.serve._private import http_util

    assert 'append("X-Request-ID", request_id)' in inspect.getsource(http_util.RequestIdMiddleware)
    assert "[Middleware(RequestIdMiddleware)] + middlewares" in inspect.getsource(
        http_util._apply_middlewares
    ), "what we add stands before it"


def test_rays_replicas_can_be_asked_one_by_one() -> None:
    from ray.serve._private.common import DeploymentID, ReplicaID, RequestMetadata
    from ray.serve._private.replica import ReplicaActor

    name = ReplicaID("r", DeploymentID("MergingReplica:demo", "tta-serve")).to_full_id_str()
    assert ReplicaID.is_full_id_str(name)
    assert ReplicaID.from_full_id_str(name).deployment_id == DeploymentID(
        "MergingReplica:demo", "tta-serve"
    )
    assert [*inspect.signature(ReplicaActor.handle_request).parameters][
        1
    ] == "pickled_request_metadata"
    assert {"request_id", "internal_request_id", "call_method"} <= inspect.signature(
        RequestMetadata
    ).parameters.keys()


def test_ray_routes_by_a_key_that_we_choose() -> None:
    from ray.llm._internal.serve.core.ingress import router
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    assert list(inspect.signature(ConsistentHashRouter._routing_key).parameters) == [
        "self",
        "pending_request",
    ]
    assert "self._routing_key(pending_request)" in inspect.getsource(ConsistentHashRouter)
    assert "metadata.session_id" in inspect.getsource(ConsistentHashRouter._routing_key)
    payload = router._parse_routing_payload(b'{"messages": [1], "user": "u"}')
    assert vars(payload) == {"messages": [1], "user": "u"}
    assert router._parse_routing_payload(b"[1]") is None


def test_ray_starts_beside_its_cluster_what_we_end() -> None:
    from ray._private.node import Node

    from tta_serve.serving import ray_private

    for name in re.findall(r"node\.(kill_\w+)", inspect.getsource(ray_private)):
        assert "check_alive" in inspect.signature(getattr(Node, name)).parameters


def test_uvicorns_connections_have_the_hooks_that_ours_override() -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    from tta_serve.serving.http.http_server import BoundedProtocol

    overridden = {
        name for name, value in vars(BoundedProtocol).items() if inspect.isfunction(value)
    }
    ours = {"_await_head", "_forget_head", "_give_up"}
    hooks = {
        "connection_made",
        "connection_lost",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
    }
    assert overridden == ours | hooks
    for name in hooks:
        theirs = inspect.signature(getattr(HttpToolsProtocol, name))
        assert [*inspect.signature(getattr(BoundedProtocol, name)).parameters] == [
            *theirs.parameters
        ]
    assert not [
        name
        for name in vars(HttpToolsProtocol)
        if "head" in name and name not in ("on_header", "on_headers_complete")
    ]
    source = inspect.getsource(HttpToolsProtocol)
    assert "self.parser = httptools.HttpRequestParser(self)" in source
    assert "self.parser.feed_data(data)" in inspect.getsource(HttpToolsProtocol.data_received)
    for name in (
        "self.loop = ",
        "self.transport = transport",
        "def send_400_response(self, msg: str)",
    ):
        assert name in source
    assert "self.transport.close()" in inspect.getsource(HttpToolsProtocol.send_400_response)


def test_uvicorns_server_can_be_run_and_ended_by_others() -> None:
    import uvicorn

    source = inspect.getsource(uvicorn.Server)
    for name in (
        "self.started = True",
        "if self.should_exit",
        "not self.force_exit",
        "with self.capture_signals():",
    ):
        assert name in source
    assert "sockets" in inspect.signature(uvicorn.Server.serve).parameters
    assert "for sock in sockets" in inspect.getsource(uvicorn.Server.startup)


def test_fastapi_and_starlette_keep_routes_handlers_and_middleware_where_we_change_them() -> None:
    from fastapi import FastAPI
    from fastapi.routing import APIRoute
    from starlette.applications import Starlette

    source = inspect.getsource(Starlette)
    assert "self.user_middleware = " in source
    assert "if self.middleware_stack is None" in source
    assert "self.exception_handlers = " in source
    assert isinstance(FastAPI().router.routes, list)
    assert "body_params" in inspect.getsource(inspect.getmodule(APIRoute))  # type: ignore[arg-type]


def test_cpu_products_are_chosen_in_the_function_we_replace() -> None:
    import torch
    from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding

    from tta_serve.engine.worker.plugin import register

    register()
    assert "tta_serve" in utils.dispatch_cpu_unquantized_gemm.__code__.co_filename
    assert list(inspect.signature(utils.dispatch_cpu_unquantized_gemm).parameters) == [
        "layer",
        "remove_weight",
    ]
    assert "return layer.cpu_linear(x, weight, bias)" in inspect.getsource(
        utils.cpu_unquantized_gemm
    )
    for method in (
        linear.UnquantizedLinearMethod,
        vocab_parallel_embedding.UnquantizedEmbeddingMethod,
    ):
        source = inspect.getsource(method.process_weights_after_loading)
        assert "utils import dispatch_cpu_unquantized_gemm" in source, "looked up when it is called"
    for name in ("_linear_pointwise", "_reorder_linear_weight", "data_ptr", "_nbytes"):
        assert hasattr(torch.ops.mkldnn, name)


def test_weights_are_loaded_by_what_stand_ins_can_stand_for() -> None:
    from vllm.model_executor.models.utils import AutoWeightsLoader
    from vllm.model_executor.parameter import BasevLLMParameter

    assert 'getattr(param, "weight_loader", default_weight_loader)' in inspect.getsource(
        AutoWeightsLoader._load_param
    )
    assert BasevLLMParameter.weight_loader.fset is not None


def test_the_scheduler_keeps_requests_where_we_hide_them_from_it() -> None:
    from vllm.config.scheduler import SchedulerConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    source = inspect.getsource(Scheduler.__init__)
    for line in (
        "self.running: list[Request] = []",
        "self.waiting = create_request_queue(self.policy)",
        "self.skipped_waiting = create_request_queue(self.policy)",
        "self.requests: dict[str, Request] = {}",
    ):
        assert line in source
    assert "del self.requests[request.request_id]" in inspect.getsource(Scheduler._free_blocks)
    assert inspect.getsource(Scheduler).count("del self.requests[") == 1
    assert list(inspect.signature(Scheduler._preempt_request).parameters)[1:] == [
        "request",
        "timestamp",
        "drop_stale_output",
    ]
    assert "schedule" not in vars(AsyncScheduler)
    assert "resolve_obj_by_qualname" in inspect.getsource(SchedulerConfig.get_scheduler_cls)
    source = inspect.getsource(GPUModelRunner._update_states)
    assert "for req_id in unscheduled_req_ids:" in source, "requests may be left out of a step"


def test_norms_return_what_they_are_the_norm_of_as_seats_behind_them_read_it() -> None:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

    for norm in (RMSNorm, GemmaRMSNorm):
        parameters = [*inspect.signature(norm.forward_native).parameters]
        assert parameters[1:3] == ["x", "residual"]
        assert "self.variance_epsilon" in inspect.getsource(norm.__init__)
    source = inspect.getsource(RMSNorm.__init__)
    for attribute in ("self.variance_size_override", "self.has_weight"):
        assert attribute in source


def test_ray_asks_whether_to_download_a_base_before_it_does() -> None:
    from ray.llm._internal.common.callbacks.base import CallbackCtx
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    assert CallbackCtx().run_init_node is True
    source = inspect.getsource(VLLMEngine.start)
    assert "callback = self.llm_config.get_or_create_callback()" in source
    assert "if callback.ctx.run_init_node:\n            await initialize_node(" in source
