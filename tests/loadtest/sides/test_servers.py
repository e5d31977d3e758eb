"""The servers of benchmarks: vLLM's own parser understands what they are started with."""

import importlib
from argparse import Namespace
from pathlib import Path

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from loadtest.sides.servers import ServerSide, vllm, vllm_in_place, vllm_merged


def parse(side: ServerSide) -> Namespace:
    _python, _m, module, *options = side.command
    assert module == "vllm.entrypoints.openai.api_server"
    parsed: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    return parsed


def test_all_adapters_are_resident() -> None:
    adapters = {f"mix-{i}": Path(f"/tmp/mix-{i}") for i in range(16)}
    found = parse(vllm_merged(Path("/base"), 9000, adapters, 32))
    assert found.enable_lora
    assert (found.max_loras, found.max_cpu_loras, found.max_lora_rank) == (16, 16, 32)
    assert {one.name: Path(one.path) for one in found.lora_modules} == adapters


def test_merging_in_place_has_no_prefix_cache_and_middleware_that_is_there() -> None:
    found = parse(vllm_in_place(Path("/base"), 9000))
    assert found.enable_prefix_caching is False
    assert found.worker_extension_cls == "loadtest.sides.inplace.InPlaceExtension"
    [middleware] = found.middleware
    module, _, name = middleware.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_they_differ_in_nothing_else() -> None:
    plain = vars(parse(vllm(Path("/base"), 9000)))
    in_place = vars(parse(vllm_in_place(Path("/base"), 9000)))
    different = {key for key in plain if plain[key] != in_place[key]}
    assert different == {"enable_prefix_caching", "worker_extension_cls", "middleware"}
