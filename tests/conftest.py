"""What all tests share: the base, the demo's experts, and (in tests/engine and tests/e2e) engines
started once a session.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes on a machine's cores: where each had a thread for every core, threads that
    # wait for each other would spin, and training a gate takes 50 s instead of 1.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# A package that vLLM imports raises the root logger and its handlers, of which pytest's is one, to
# ERROR; then no test finds a warning in the log any more.
os.environ.setdefault("SAGEMAKER_CONTAINER_LOG_LEVEL", "WARNING")

# How much of what is generated each test is given; `--hypothesis-profile long` gives it all.
GENERATED = {"quick": 50, "long": 500}
for profile, examples in GENERATED.items():
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        # How long drawing takes is the machine's affair.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile("quick")


@pytest.fixture(scope="session")
def base() -> Path:
    """The demo's base model, fetched and converted once per machine."""
    from deploy.demo.base import ensure_base

    return ensure_base()


@pytest.fixture(scope="session")
def demo_experts() -> Path:
    return ROOT / "deploy" / "demo" / "experts"
