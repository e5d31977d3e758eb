"""Which weights of a model can be written while it serves, and where their values lie in memory.

vLLM's CPU build packs the weight of every linear layer into a layout of oneDNN's that nothing can
write to, and drops the weight. In an engine that serves dense experts torch packs it, by the same
library and for the same product, into memory that can be written. The output head, whose weight may
be the token embedding too, multiplies by a packed copy while the weight is the base's, and else by
the weight as it is.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from adapters.coefficient import Place, place_of
from adapters.files.safetensors_reader import FLOATS

_PLANE = 256
"""What every dtype counts up to without a gap."""


class PackedProduct:
    """A linear layer's own product on a CPU, by a packed weight that can be written.

    Attributes:
        shape: The weight's shape, [out, in].
        values: The packed weight's values, flat, in memory of the product's own.
    """

    def __init__(self, weight: Tensor) -> None:
        """Pack a weight, [out, in]."""
        self.shape = weight.shape
        self._packed, self.values = _pack(weight)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + bias; the weight that is handed over is an empty one."""
        return _multiply(x, self._packed, bias)

    def find_order(self) -> Tensor:
        """Return which of the weight's values each packed value is, counted from 1; 0 is padding.

        The weight's positions are packed in its place, as digits that its dtype holds exactly.
        """
        count = self.shape.numel()
        positions = torch.arange(1, count + 1)
        order = torch.zeros(self.values.numel(), dtype=torch.int32)
        place = 1
        while place <= count:
            digits = (positions // place % _PLANE).to(self.values.dtype)
            # What was packed lies in memory of its tensor, which must live until it is read.
            packed, values = _pack(digits.view(self.shape))
            order += values.int() * place
            place *= _PLANE
            del packed
        return order


class HeadProduct:
    """An output head's own product on a CPU, by a weight that stays as it is loaded.

    Attributes:
        is_clean: Whether the weight has the base's values, of which a packed copy is kept.
    """

    def __init__(self) -> None:
        self.is_clean = True
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + bias."""
        if not self.is_clean:
            return _multiply(x, weight, bias)
        if self._packed is None:  # as for no embedding that is no head
            self._packed = _reorder(weight)
        return _multiply(x, self._packed, bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + bias as oneDNN does it, by a weight that is packed or plain."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _reorder(weight: Tensor) -> Tensor:
    """Return a weight, [out, in], as oneDNN wants it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight as oneDNN wants it, and a view of its values, flat."""
    packed = _reorder(weight)
    count = torch.ops.mkldnn._nbytes(packed) // weight.element_size()
    address = torch.ops.mkldnn.data_ptr(packed)
    memory = (ctypes.c_char * (count * weight.element_size())).from_address(address)
    return packed, torch.frombuffer(memory, dtype=weight.dtype)


def keep_writable(stock: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's choice of a CPU product, but for weights that must stay writable.

    Args:
        stock: `vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm`.
    """

    @wraps(stock)
    def dispatch(layer: Any, remove_weight: bool) -> None:
        from vllm.config import get_current_vllm_config_or_none

        from tta_serve.engine.options import BankOptions

        config = get_current_vllm_config_or_none()
        options = BankOptions.read(config.additional_config) if config is not None else None
        if options is None or options.dense is None or not _is_matrix(layer.weight):
            stock(layer, remove_weight)
        elif not can_pack(layer.weight.dtype):
            layer.cpu_linear = nn.functional.linear
        elif remove_weight:
            layer.cpu_linear = PackedProduct(layer.weight.data)
            layer.weight.data = layer.weight.data.new_empty(0)
        else:
            layer.cpu_linear = HeadProduct()

    return dispatch


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim == 2 and not weight.is_meta


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this CPU has oneDNN's products by weights of a dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    mkldnn = torch.ops.mkldnn
    return bool(
        dtype == torch.float32
        or (dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported())
        or (dtype == torch.float16 and mkldnn._is_mkldnn_fp16_supported())
    )


@dataclass(frozen=True)
class WritableWeight:
    """A weight of a model that can be written while it serves."""

    name: str
    """vLLM's first name of it; weights that are tied have one."""
    place: Place
    """Where it sits."""
    values: Tensor
    """Its values as the model reads them, flat."""
    shape: torch.Size
    """Its shape as vLLM's loader fills it."""
    packed: PackedProduct | None
    """What has packed it, None if its values lie as its loader fills them."""
    heads: tuple[HeadProduct, ...] = ()
    """What may have a packed copy of it."""


def find_writable(model: nn.Module) -> dict[int, WritableWeight | str]:
    """Return the weights of a model by the `id` of their parameter.

    In place of a weight that cannot be written stands what it is.
    """
    refused = dict(_find_refused(model))
    heads = _find_heads(model)
    found: dict[int, WritableWeight | str] = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in found:
                found[id(parameter)] = refused.get(id(module)) or _look_at(
                    f"{name}.{leaf}", module, parameter, heads[id(parameter)]
                )
    return found


def _find_heads(model: nn.Module) -> defaultdict[int, tuple[HeadProduct, ...]]:
    """Return what multiplies by a weight as an output head does, by the `id` of the weight."""
    heads: defaultdict[int, tuple[HeadProduct, ...]] = defaultdict(tuple)
    for module in model.modules():
        product = getattr(module, "cpu_linear", None)
        if isinstance(product, HeadProduct):
            heads[id(module.weight)] += (product,)
    return heads


def _find_refused(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Return modules whose weights are used in another form than they are loaded in, by `id`."""
    for module in model.modules():
        if isinstance(module, MoERunner):
            for part in module.modules():
                yield id(part), "routed to, which vLLM keeps in a layout of its kernels"
        if isinstance(module, MLAAttention):
            yield id(module.kv_b_proj), "absorbed into other products by latent attention"


def _look_at(
    name: str, module: nn.Module, parameter: nn.Parameter, heads: tuple[HeadProduct, ...]
) -> WritableWeight | str:
    """Return a weight, or why it cannot be written."""
    if parameter.dtype not in FLOATS or _is_quantised(module):
        return "quantised"
    product = getattr(module, "cpu_linear", None) if name.endswith(".weight") else None
    if isinstance(product, PackedProduct):
        return WritableWeight(name, place_of(name), product.values, product.shape, product)
    if parameter.ndim > 1 and not isinstance(module, LinearBase | VocabParallelEmbedding):
        return "no linear layer, embedding or vector"
    plain = isinstance(product, HeadProduct) or product in (None, nn.functional.linear)
    if not (plain and parameter.is_contiguous()):
        return "kept in a layout of its kernel"
    values = parameter.data.view(-1)
    return WritableWeight(name, place_of(name), values, parameter.shape, None, heads)


def _is_quantised(module: nn.Module) -> bool:
    method = getattr(module, "quant_method", None)
    return isinstance(module, LinearBase | VocabParallelEmbedding) and not isinstance(
        method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod
    )
