"""What all tests share: the base, the demo's experts, and (in tests/engine and tests/e2e) engines
started once a session.
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(scope="session")
def base() -> Path:
    """The demo's base model, fetched and converted once per machine."""
    from deploy.demo.base import ensure_base

    return ensure_base()


@pytest.fixture(scope="session")
def demo_experts() -> Path:
    return ROOT / "deploy" / "demo" / "experts"
