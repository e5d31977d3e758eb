"""All of a request that the scheduler or a worker reads, and who may set it.

Beside each field stands why that harms nobody else.

An upgrade of vLLM that adds a field fails here, and somebody has to find out what it does to a mix,
to the cache, and to the others in the batch.
"""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import tta_serve

Who = Literal["client", "us", "vllm", "nobody"]
"""A client by a field of a body, tta_serve alone, vLLM's serving layer, or nobody, so that it keeps
its default."""

REQUEST: dict[str, tuple[Who, str]] = {
    "request_id": (
        "vllm",
        "made unique by InputProcessor.assign_request_id, whatever a client chose",
    ),
    "prompt_token_ids": (
        "client",
        "checked against the vocabulary by EngineClient, and against the length by vLLM",
    ),
    "mm_features": (
        "vllm",
        "of the base's processor; identified by content and the adapter's name",
    ),
    "sampling_params": ("vllm", "of the fields below"),
    "pooling_params": ("nobody", "no route that pools is served"),
    "arrival_time": ("vllm", "the time"),
    "lora_request": ("us", "the mix: EngineClient drops what vLLM's serving layer hands over"),
    "cache_salt": (
        "client",
        "keys the prefix cache beside the adapter's name, so that it can only share less",
    ),
    "data_parallel_rank": ("nobody", "the edge drops the header; replicas are Ray's"),
    "prompt_embeds": (
        "nobody",
        "enable_prompt_embeds is refused by the config: a prompt without tokens cannot be routed",
    ),
    "prompt_is_token_ids": ("nobody", "goes with prompt_embeds"),
    "client_index": ("vllm", "of the API process; there is one"),
    "current_wave": ("vllm", "of data parallelism, which is off"),
    "priority": (
        "client",
        "read by no scheduler but the one by priority, which an operator has to choose",
    ),
    "trace_headers": ("client", "only if an operator has tracing on; written to spans"),
    "resumable": ("nobody", "of streamed input, whose route is not served"),
    "external_req_id": ("vllm", "the id before it was made unique; names outputs"),
    "reasoning_ended": (
        "vllm",
        "of the reasoning parser; a property of the answer's grammar alone",
    ),
    "reasoning_parser_kwargs": (
        "client",
        "chat_template_kwargs, read by the reasoning parser of this request alone",
    ),
    "abort_immediately": ("nobody", "of servers that move caches"),
    "session_id": ("client", "kept on the request, read by no scheduler or worker"),
}

PARAMS: dict[str, tuple[Who, str]] = {
    "n": ("client", "admission counts it; samples are requests of their own with one adapter"),
    "presence_penalty": ("client", "of the request's own logits"),
    "frequency_penalty": ("client", "of the request's own logits"),
    "repetition_penalty": ("client", "of the request's own logits"),
    "temperature": ("client", "of the request's own logits"),
    "top_p": ("client", "of the request's own logits"),
    "top_k": ("client", "of the request's own logits"),
    "min_p": ("client", "of the request's own logits"),
    "seed": ("client", "a generator of the request's own"),
    "stop": ("client", "looked for in the request's own text"),
    "stop_token_ids": ("client", "indices into logits; checked by Routes and by vLLM"),
    "ignore_eos": ("client", "ends at max_tokens"),
    "max_tokens": ("client", "vLLM bounds it by the base's length"),
    "min_tokens": ("client", "masks the request's own logits"),
    "logprobs": ("client", "vLLM bounds it by max_logprobs"),
    "prompt_logprobs": (
        "client",
        (
            "vLLM bounds it, and reads none of the prefix cache; a turn's features are seen all the"
            " same"
        ),
    ),
    "logprob_token_ids": ("client", "indices into logits; checked by Routes and by vLLM"),
    "flat_logprobs": ("nobody", "no route sets it"),
    "detokenize": ("vllm", "False for beams"),
    "skip_special_tokens": ("client", "of the request's own text"),
    "spaces_between_special_tokens": ("client", "of the request's own text"),
    "include_stop_str_in_output": ("client", "of the request's own text"),
    "output_kind": ("vllm", "by stream; EngineClient changes it on a clone"),
    "stream_interval": ("client", "how often the request's own outputs come"),
    "skip_clone": (
        "vllm",
        "its parameters are made for one request; EngineClient clones before it changes any",
    ),
    "output_text_buffer_length": ("vllm", "of stop"),
    "_eos_token_id": ("vllm", "the base's"),
    "_all_stop_token_ids": ("vllm", "of stop_token_ids and the base's"),
    "structured_outputs": (
        "client",
        "a grammar, compiled by vLLM beside the engine; one that fails ends its own request",
    ),
    "logit_bias": ("client", "indices into logits; checked by Routes and by vLLM"),
    "allowed_token_ids": ("client", "indices into logits; checked by Routes and by vLLM"),
    "extra_args": (
        "client",
        "vllm_xargs: nothing of ours is read there; what moves caches is refused by Routes",
    ),
    "bad_words": ("client", "vLLM tokenizes them and checks the tokens"),
    "_bad_words_token_ids": ("vllm", "of bad_words"),
    "skip_reading_prefix_cache": ("vllm", "of prompt_logprobs"),
    "thinking_token_budget": ("client", "of the request's own answer"),
    "repetition_detection": ("client", "ends the request itself"),
    "routed_experts_prompt_start": (
        "client",
        "only if an operator has the base return its own experts' routing",
    ),
    "trace_decode_token_ids": ("nobody", "no route sets it"),
}

ADAPTER: dict[str, tuple[Who, str]] = {
    "lora_name": ("us", "keys the prefix cache: of a mix its content, of a conversation its own"),
    "lora_int_id": ("us", "of the same hash"),
    "lora_path": ("us", "what a worker is to do, and which tokens are the user's turn"),
    "base_model_name": ("nobody", "of vLLM's list of models"),
    "tensorizer_config_dict": ("nobody", "another way to load"),
    "load_inplace": ("nobody", "of vLLM's own adapters"),
    "is_3d_lora_weight": ("nobody", "of vLLM's own adapters"),
}


def fields(kind: type) -> set[str]:
    return {*kind.__struct_fields__}  # type: ignore[attr-defined]


def test_every_field_of_a_request_is_known() -> None:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    for kind, table in (
        (EngineCoreRequest, REQUEST),
        (SamplingParams, PARAMS),
        (LoRARequest, ADAPTER),
    ):
        assert fields(kind) - table.keys() == set(), (
            f"{kind.__name__} has fields that nobody has looked at"
        )
        assert table.keys() - fields(kind) == set(), f"{kind.__name__} has them no more"


def _bodies() -> dict[str, Any]:
    """vLLM's models of what clients send to routes that generate."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import (
        BatchChatCompletionRequest,
        ChatCompletionRequest,
    )
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    kinds = (
        ChatCompletionRequest,
        BatchChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
        AnthropicMessagesRequest,
    )
    return {name: field for kind in kinds for name, field in kind.model_fields.items()}


UNDER_ANOTHER_NAME = {
    "prompt_token_ids": "prompt",
    "extra_args": "vllm_xargs",
    "trace_headers": "",  # headers, not a field
    "reasoning_parser_kwargs": "chat_template_kwargs",
}


def test_what_a_client_may_set_is_a_field_of_a_body_and_nothing_else_is() -> None:
    bodies = _bodies()
    for table in (REQUEST, PARAMS):
        for name, (who, _) in table.items():
            sent = UNDER_ANOTHER_NAME.get(name, name)
            if who == "client":
                assert not sent or sent in bodies, name
            elif name not in ("request_id", "prompt_embeds"):  # made unique; refused
                assert name not in bodies, f"a client can set {name}"
    assert not ADAPTER.keys() & bodies.keys()


INDICES = [name for name, (_, why) in PARAMS.items() if why.startswith("indices into logits")]


@pytest.mark.parametrize("name", INDICES)
def test_indices_into_logits_are_checked_by_vllm_too(name: str) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    base: Any = SimpleNamespace(get_vocab_size=lambda: 100, max_logprobs=20)
    validate = "logprobs" if name == "logprob_token_ids" else name
    for token in (100, -1):
        value: Any = {token: 1.0} if name == "logit_bias" else [0, token]
        with pytest.raises(VLLMValidationError):
            getattr(SamplingParams(**{name: value}), f"_validate_{validate}")(base)
    assert f"self._validate_{validate}(model_config)" in inspect.getsource(SamplingParams.verify)


def test_the_scheduler_reads_nothing_else_of_the_extra_arguments() -> None:
    from vllm.v1.request import Request

    source = inspect.getsource(Request.__init__)
    assert set(re.findall(r'extra_args\.get\(\s*"(\w+)"', source)) == {
        "kv_transfer_params",
        "ec_transfer_params",
        "kv_cache_report_mode",
    }


def test_nothing_of_ours_is_read_from_what_a_client_can_fill() -> None:
    """Orders to the engine travel in the adapter's path; nobody looks into extra arguments."""
    root = Path(tta_serve.__path__[0])
    sources = {file: file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    assert len(sources) > 50
    for file, source in sources.items():
        assert "extra_args" not in re.sub(r"\"\"\".*?\"\"\"", "", source, flags=re.DOTALL), file
        for line in source.splitlines():
            if "xargs" in line:
                assert "tta" not in line.replace("tta_serve", ""), f"{file}: {line}"


def test_a_turn_changes_nothing_of_an_adapter_but_its_path() -> None:
    """So that two turns of a conversation share their cache."""
    from tta_serve.engine import wire

    request = wire.make_undecided_request("policy")
    assert wire.read_order(request).turn is None
    turned, other = wire.with_turn(request, (3, 9)), wire.with_turn(request, (3, 10))
    assert wire.read_order(turned).turn == (3, 9)
    assert wire.read_order(turned)._replace(turn=None) == wire.read_order(request)
    assert wire.read_order(wire.with_turn(turned, (0, 0))).turn == (0, 0)
    assert len({one.lora_path for one in (request, turned, other)}) == 3
    assert len({(one.lora_name, one.lora_int_id) for one in (request, turned, other)}) == 1
    for wrong in ((-1, 5), (5, 4)):
        with pytest.raises(AssertionError):
            wire.with_turn(request, wrong)
