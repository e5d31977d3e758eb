"""vLLM's entry point `vllm.general_plugins`, which runs in every process of vLLM.

It changes nothing for engines that are not configured for mixture slots.
"""

import os
import threading
import time
from multiprocessing import parent_process
from typing import Any

_LOOK_S = 2.0


def register() -> None:
    """Let vLLM's model runners build our manager where the engine is configured for it.

    It may be called again, and then does nothing.
    """
    import vllm.v1.worker.lora_model_runner_mixin as mixin

    stock = mixin.LRUCacheWorkerLoRAManager
    if getattr(stock, "_tta_serve", False):
        return

    def manager(vllm_config: Any, device: Any, embedding_modules: Any) -> Any:
        from adapters.errors import ExpertError
        from tta_serve.engine.options import BankOptions
        from tta_serve.engine.worker.mixture_manager import MixtureManager
        from tta_serve.engine.worker.vllm_hooks import is_second_runner

        options = BankOptions.read(vllm_config.additional_config)
        if options is None:
            return stock(vllm_config, device, embedding_modules)
        if options.dense is not None and is_second_runner():
            raise ExpertError(
                "dense experts take turns, and vLLM's second model runner has no room for requests"
                " that wait for theirs; unset VLLM_USE_V2_MODEL_RUNNER"
            )
        return MixtureManager(vllm_config, device, embedding_modules, options)

    _end_with_parent()
    manager._tta_serve = True  # type: ignore[attr-defined]
    mixin.LRUCacheWorkerLoRAManager = manager
    _keep_plain_moe_kernels()
    _keep_weights_writable()
    _report_decisions()


def _end_with_parent() -> None:
    """End this process when its parent ends.

    An engine whose server was killed would stay otherwise, with all its memory: vLLM's processes
    look after their workers only.
    """
    if parent_process() is None:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="tta-parent", daemon=True).start()


def _keep_plain_moe_kernels() -> None:
    """Let routed experts run as in an engine without adapters.

    With adapters on, vLLM runs them by kernels that add adapters to them; our experts leave those
    alone.
    """
    import vllm.model_executor.layers.fused_moe.layer as moe
    from vllm.config import get_current_vllm_config

    stock = moe.FusedMoEConfig

    def config(**given: Any) -> Any:
        from tta_serve.engine.options import BankOptions

        if BankOptions.read(get_current_vllm_config().additional_config) is not None:
            given["is_lora_enabled"] = False
        return stock(**given)

    moe.FusedMoEConfig = config


def _keep_weights_writable() -> None:
    """Let the weights of engines that serve dense experts stay writable on a CPU."""
    import vllm.model_executor.layers.utils as layers

    from tta_serve.engine.worker.dense.writable_weights import keep_writable

    layers.dispatch_cpu_unquantized_gemm = keep_writable(layers.dispatch_cpu_unquantized_gemm)


def _report_decisions() -> None:
    """Let decisions made inside the pass travel back with the outputs.

    It is of one of vLLM's two model runners: our engines run on the first, whatever vLLM would
    choose for the model, unless the environment asks for the second.
    """
    from vllm.config import VllmConfig

    from tta_serve.engine.options import BankOptions
    from tta_serve.engine.worker.vllm_hooks import is_second_runner, wrap_vllm

    wrap_vllm()
    stock = VllmConfig.use_v2_model_runner.fget

    def use_v2_model_runner(self: Any) -> bool:
        ours = BankOptions.read(self.additional_config) is not None
        return is_second_runner() if ours else bool(stock(self))

    VllmConfig.use_v2_model_runner = property(use_v2_model_runner)
