"""The keys of vLLM's prefix cache, for mixes that act from a token on.

vLLM puts the name of a request's adapter into the key of each of its blocks. Tokens before the one
from which a mix acts are the base's, or an earlier mix's, so their blocks are named by that: all
conversations then share a system prompt, whatever they go on as. A key has the keys of all blocks
before it in it, so that what follows a different prefix stays apart.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from tta_serve.engine.wire import find_names, is_ours

ExtraKeys = tuple[Any, ...] | None


def name_blocks(stock: Callable[..., tuple[ExtraKeys, int]]) -> Callable[..., Any]:
    """Wrap vLLM's `generate_block_hash_extra_keys`, whose first key is the adapter's name."""

    @wraps(stock)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[ExtraKeys, int]:
        keys, next_mm_idx = stock(request, start_token_idx, end_token_idx, start_mm_idx)
        adapter = request.lora_request
        if adapter is None or not is_ours(adapter):
            return keys, next_mm_idx

        assert keys is not None
        name, *others = keys
        assert name == adapter.lora_name, keys
        found = (*find_names(adapter, start_token_idx, end_token_idx), *others)
        return found or None, next_mm_idx

    return generate_block_hash_extra_keys
