"""Every private thing of vLLM and Ray that we rely on, at the pinned versions: an upgrade that moves one fails here first."""

import inspect
import re
from importlib.metadata import version


def test_the_versions_are_the_ones_this_was_read_at() -> None:
    import vllm

    assert version("ray") == "2.60.0"
    assert vllm.__version__.split("+")[0] == "0.29.0"


def test_vllm_model_runners_build_the_manager_from_the_name_we_replace() -> None:
    import vllm.v1.worker.lora_model_runner_mixin as mixin
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    from tta_serve.engine.manager import MixtureManager
    from tta_serve.engine.plugin import register

    source = inspect.getsource(mixin.LoRAModelRunnerMixin.load_lora_model)
    assert "LRUCacheWorkerLoRAManager(" in source
    register()
    register()
    assert getattr(mixin.LRUCacheWorkerLoRAManager, "_tta_serve", False)
    runner = inspect.getsource(mixin)
    for name in ("set_active_adapters", "add_dummy_lora", "get_dummy_lora_warmup_rank", "dummy_lora_cache"):
        assert f"lora_manager.{name}(" in runner
    for name in [n for n in vars(LRUCacheWorkerLoRAManager.__mro__[1]) if not n.startswith("_")]:
        assert hasattr(MixtureManager, name), f"vLLM's manager has {name}, ours has not"


def test_vllm_chooses_kernels_for_routed_experts_by_the_config_we_replace() -> None:
    from vllm.model_executor.layers.fused_moe import layer

    source = inspect.getsource(layer.FusedMoEFactory)
    assert "moe_config = FusedMoEConfig(" in source
    assert "is_lora_enabled=vllm_config.lora_config is not None," in source
    assert "runner_cls = MoERunner" in source


def test_linear_layers_go_through_their_quant_method() -> None:
    from vllm.model_executor.layers import linear

    for layer in (linear.ReplicatedLinear, linear.ColumnParallelLinear, linear.RowParallelLinear):
        assert "self.quant_method.apply(self, " in inspect.getsource(layer.forward)
    for layer in (linear.MergedColumnParallelLinear, linear.QKVParallelLinear):
        assert layer.forward is linear.ColumnParallelLinear.forward


def test_models_are_called_so_that_their_output_passes_our_hook() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "return self.model(" in inspect.getsource(GPUModelRunner._model_forward)
    source = inspect.getsource(GPUModelRunner.execute_model)
    assert "sample_hidden_states = hidden_states[logits_indices]" in source, "they are one for each token, in order"
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

    from tta_serve.engine.plugin import register

    register()
    source = inspect.getsource(GPUModelRunner)
    assert re.search(r"self.set_active_loras\(\s+self.input_batch, num_scheduled_tokens, num_sampled_tokens", source)
    for name in ("req_ids", "num_computed_tokens_cpu"):
        assert f"{name}" in inspect.getsource(gpu_input_batch.InputBatch)
    for name in ("lora_request", "sampling_params"):
        assert f"{name}: " in inspect.getsource(gpu_input_batch.CachedRequestState)
    wrapped = (LoRAModelRunnerMixin.set_active_loras, GPUModelRunner.sample_tokens, Scheduler.update_from_output)
    files = [(m.__code__.co_filename, m.__wrapped__.__code__.co_filename) for m in wrapped]
    for ours, theirs in files:
        assert "tta_serve" in ours
        assert "tta_serve" not in theirs, "wrapped once, however often we register"
    assert CPUModelRunner.sample_tokens is GPUModelRunner.sample_tokens
    assert AsyncScheduler.update_from_output is Scheduler.update_from_output
    assert AsyncModelRunnerOutput.__abstractmethods__ == {"get_output"}
    assert "kv_transfer_params = engine_core_output.kv_transfer_params" in inspect.getsource(output_processor.OutputProcessor)


def test_which_model_runner_is_used_is_a_property_of_the_configuration() -> None:
    from vllm.config import VllmConfig
    from vllm.v1.worker import gpu_worker

    assert isinstance(VllmConfig.__dict__["use_v2_model_runner"], property)
    assert "vllm_config.use_v2_model_runner" in inspect.getsource(gpu_worker)


def test_the_prefix_cache_is_keyed_by_the_adapters_name() -> None:
    from vllm.v1.core import kv_cache_utils

    assert "request.lora_request.lora_name" in inspect.getsource(kv_cache_utils._gen_lora_extra_hash_keys)


def test_adapter_ids_are_carried_in_64_bits() -> None:
    from vllm.v1.worker.gpu_input_batch import InputBatch

    assert "request_lora_mapping = np.zeros((self.max_num_reqs,), dtype=np.int64)" in inspect.getsource(InputBatch.__init__)


def test_openai_serving_asks_for_the_adapter_where_we_answer() -> None:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    for serving in (OpenAIServingChat, OpenAIServingCompletion):
        source = inspect.getsource(serving)
        assert "self._maybe_get_adapters(request" in source
        assert "self.models.model_name(lora_request)" in source
    assert list(inspect.signature(OpenAIServingModels.model_name).parameters) == ["self", "lora_request"]


def test_async_llm_is_what_the_client_calls() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    for name in ("generate", "collective_rpc", "get_tokenizer"):
        assert callable(getattr(AsyncLLM, name))
    assert "if self.gauge_lora_info is not None" in inspect.getsource(PrometheusStatLogger.record)
    for name in ("logger_manager", "model_config"):
        assert f"self.{name} = " in inspect.getsource(AsyncLLM.__init__)


def test_ray_engine_has_the_parts_we_reach_for() -> None:
    from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    from tta_serve.engine import ray_private

    source = inspect.getsource(VLLMEngine)
    for name in ("_engine_client", "_oai_models", "_oai_serving_chat", "_oai_serving_completion"):
        assert f"self.{name}" in source
    for name in ("_get_model_id", "_get_response", "_process_llm_request"):
        assert hasattr(OpenAiIngress, name)
    assert all(hasattr(ray_private, name) for name in ray_private.__all__)
