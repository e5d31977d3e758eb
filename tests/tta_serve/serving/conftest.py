"""vLLM's own app, as a replica has it, without an engine behind it."""

import argparse
from collections.abc import Callable
from pathlib import Path

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
    from tta_serve.serving.replica.openai_app import complete_app
    from tta_serve.serving.replica.peers import Peers

    app = build()
    complete_app(app, None, Peers(None, 1, 1), Path("library"), None)
    return app
