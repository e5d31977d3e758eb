"""vLLM's entry point `vllm.general_plugins`: runs in every vLLM process, changes nothing for engines that are not ours."""

import os
import threading
import time
from multiprocessing import parent_process
from typing import Any

_LOOK_S = 2.0


def register() -> None:
    """Let vLLM's model runners build our manager when the engine was configured for it. Safe to call again."""
    import vllm.v1.worker.lora_model_runner_mixin as mixin

    stock = mixin.LRUCacheWorkerLoRAManager
    if getattr(stock, "_tta_serve", False):
        return

    def manager(vllm_config: Any, device: Any, embedding_modules: Any) -> Any:
        from tta_serve.engine.manager import MixtureManager
        from tta_serve.engine.options import BankOptions

        options = BankOptions.read(vllm_config.additional_config)
        if options is None:
            return stock(vllm_config, device, embedding_modules)
        return MixtureManager(vllm_config, device, embedding_modules, options)

    _end_with_parent()
    manager._tta_serve = True  # type: ignore[attr-defined]
    mixin.LRUCacheWorkerLoRAManager = manager
    _keep_plain_moe_kernels()
    _hand_on_decisions()


def _end_with_parent() -> None:
    """An engine whose server was killed would stay, with all its memory: vLLM's processes look after their workers only."""
    if parent_process() is None:
        return
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, name="tta-parent", daemon=True).start()


def _keep_plain_moe_kernels() -> None:
    """With adapters on, vLLM runs routed experts by kernels that add adapters to them; our experts leave those alone."""
    import vllm.model_executor.layers.fused_moe.layer as moe
    from vllm.config import get_current_vllm_config

    stock = moe.FusedMoEConfig

    def config(**given: Any) -> Any:
        from tta_serve.engine.options import BankOptions

        if BankOptions.read(get_current_vllm_config().additional_config) is not None:
            given["is_lora_enabled"] = False
        return stock(**given)

    moe.FusedMoEConfig = config


def _hand_on_decisions() -> None:
    """Routing inside the pass needs to know where requests stand, which only the first of vLLM's model runners lets us see."""
    from vllm.config import VllmConfig

    from tta_serve.engine.options import BankOptions
    from tta_serve.engine.runner import hand_on

    hand_on()
    stock = VllmConfig.use_v2_model_runner.fget

    def use_v2_model_runner(self: Any) -> bool:
        return BankOptions.read(self.additional_config) is None and bool(stock(self))

    VllmConfig.use_v2_model_runner = property(use_v2_model_runner)
