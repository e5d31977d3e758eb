"""vLLM's own app, as a replica has it, without an engine behind it."""

import argparse
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI


@pytest.fixture(scope="session")
def build() -> Callable[[], FastAPI]:
    """What Ray's `VLLMEngine.build_asgi_app` does, with the arguments that `tta_serve.serving.app`
    gives.
    """
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    args = argparse.Namespace(**vars(FrontendArgs(enable_tokenizer_info_endpoint=True)))
    return lambda: build_app(args, supported_tasks=("generate",))


@pytest.fixture(scope="session")
def app(build: Callable[[], FastAPI]) -> FastAPI:
    """The same with our routes, in which nobody can be answered."""
    return complete(build())


def complete(app: FastAPI, **server: Any) -> FastAPI:
    """Add our routes to an app, in which nobody can be answered.

    Args:
        server: Keys of the config's section of that name.
    """
    from tta_serve.config.sections import ServeConfig
    from tta_serve.serving.replica.openai_app import complete_app
    from tta_serve.serving.replica.peers import Peers

    said = {
        "model": {"id": "m", "source": "somewhere"},
        "library": {"path": "library"},
        "default_policy": "base",
        "server": server,
    }
    complete_app(app, None, Peers(None, 1, 1), ServeConfig.model_validate(said), None)
    return app
