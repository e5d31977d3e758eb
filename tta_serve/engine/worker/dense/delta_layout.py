"""An expert's deltas as a model's weights lie: fused, sharded, padded and packed, by vLLM itself.

The deltas go the way of a checkpoint: through the model's own `load_weights`, which renames, fuses,
shards and pads; but into stand-ins of its weights that hold zeros. That is right wherever loading
is copying, which is checked of every kind of weight.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size

from adapters.coefficient import EMBEDDING, HEAD
from adapters.deltas import Deltas
from adapters.errors import ExpertError
from tta_serve.engine.worker.dense.writable_weights import WritableWeight

Orders = dict[torch.Size, Tensor]
"""The orders in which the values of packed weights lie, by the weights' shapes."""


class PlacedDeltas(NamedTuple):
    """A dense expert in a model of vLLM, as far as one tensor-parallel rank holds it."""

    name: str
    """The expert's name, for messages."""
    values: Mapping[str, Tensor]
    """By the name of a `WritableWeight`, what is added to its values, in their order."""

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return sum(values.nbytes for values in self.values.values())


class DeltaLayout:
    """Lays deltas out as a model's weights are; beside running steps, since it has stand-ins."""

    def __init__(self, model: nn.Module, weights: Mapping[int, WritableWeight | str]) -> None:
        """Make the stand-ins.

        Args:
            model: vLLM's model.
            weights: What `find_writable` found in it.
        """
        self._weights = weights
        self._by_name = {w.name: w for w in weights.values() if isinstance(w, WritableWeight)}
        self._stand_ins: dict[int, nn.Parameter] = {}
        self._filled: dict[str, Tensor] = {}
        self._dtype = torch.float32
        # The kinds of weights that are known to be loaded as copies.
        self._copied: set[tuple[str, tuple[int, ...]]] = set()
        self._model: Any = self._stand_in_for(model, {})

    def place(
        self, name: str, deltas: Deltas, find_dtype: Callable[[str], torch.dtype]
    ) -> PlacedDeltas:
        """Return an expert's deltas on this rank, without those of weights that stay as they are.

        Args:
            name: The expert's name.
            deltas: What it changes, by the base's own names.
            find_dtype: Returns the dtype to keep the delta of a weight in.

        Raises:
            ExpertError: The expert changes something that cannot be written.
        """
        self._filled = {}
        try:
            for weight in deltas.shapes:
                self._dtype = find_dtype(weight)
                self._check_copied(name, weight, deltas.shapes[weight])
                self._load(name, weight, deltas.delta(weight))
            orders: Orders = {}
            values = {
                known: self.reorder(known, filled, orders)
                for known, filled in self._filled.items()
                if filled.any()
            }
            return PlacedDeltas(name, values)
        finally:
            self._filled = {}

    def _load(self, name: str, weight: str, delta: Tensor) -> set[str]:
        """Load one weight into the stand-ins. Returns the names of those that it went to."""
        self._touched: set[str] = set()
        try:
            self._model.load_weights([(weight, delta)])
        except ExpertError as error:
            raise ExpertError(f"expert {name!r}: {weight} {error}") from None
        except Exception as error:  # loaders raise anything
            quantised = "quantised" in self._weights.values()
            why = "it may be quantised" if quantised else f"{type(error).__name__}: {error}"
            raise ExpertError(
                f"expert {name!r}: the base as it is served takes no change of {weight},"
                f" {tuple(delta.shape)}; {why}"
            ) from None
        if not self._touched:
            raise ExpertError(
                f"expert {name!r}: {weight} is no weight that this base has of its own (one that is"
                " tied to another has the other's name)"
            )
        return self._touched

    def _check_copied(self, name: str, weight: str, shape: tuple[int, ...]) -> None:
        """Check, once for each kind of weight, that loading it is copying it, all of it.

        Raises:
            ExpertError: It is not.
        """
        kind = weight.partition(".layers.")[2].partition(".")[2] or weight
        if (kind, shape) in self._copied:
            return
        known, self._filled = self._filled, {}
        for value, allowed in ((0, {0.0}), (1, {0.0, 1.0})):
            self._load(name, weight, torch.full(shape, float(value)))
            got = {x for filled in self._filled.values() for x in filled.unique().tolist()}
            if not got <= allowed:
                raise ExpertError(
                    f"expert {name!r}: vLLM does not keep {weight} as it is in the checkpoint, so"
                    " that a change of it cannot be added"
                )
        count = sum(int(filled.count_nonzero()) for filled in self._filled.values())
        if count * get_tensor_model_parallel_world_size() < math.prod(shape) and not all(
            self._by_name[touched].place in (EMBEDDING, HEAD) for touched in self._filled
        ):
            raise ExpertError(
                f"expert {name!r}: {weight} has the shape {shape}, this base's has another"
            )
        self._filled = known
        self._copied.add((kind, shape))

    def reorder(self, name: str, filled: Tensor, orders: Orders) -> Tensor:
        """Return the values of a weight as its loader fills it, in the order in which they lie.

        Args:
            name: The weight's name.
            filled: The values.
            orders: Those that are known already, and this one.
        """
        weight = self._by_name[name]
        flat = filled.reshape(-1)
        if weight.packed is None:
            return flat
        if weight.shape not in orders:
            orders[weight.shape] = weight.packed.find_order()
        padded = torch.cat([flat.new_zeros(1), flat])
        return padded.index_select(0, orders[weight.shape])

    # The stand-ins

    def _stand_in_for(self, module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
        """Return a module that is the same but for its weights, and those of the modules in it."""
        if id(module) not in known:
            other = known[id(module)] = object.__new__(type(module))
            other.__dict__ = dict(module.__dict__)
            other._parameters = {
                leaf: parameter if parameter is None else self._stand_in(parameter)
                for leaf, parameter in module._parameters.items()
            }
            # What is loaded into a buffer of no memory is lost, and found to be.
            other._buffers = {
                leaf: buffer if buffer is None else buffer.to("meta")
                for leaf, buffer in module._buffers.items()
            }
            other._modules = {
                leaf: child if child is None else self._stand_in_for(child, known)
                for leaf, child in module._modules.items()
            }
        return known[id(module)]

    def _stand_in(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter without memory that gets some when it is loaded."""
        if id(parameter) not in self._stand_ins:
            weight = self._weights[id(parameter)]
            shape = parameter.shape if isinstance(weight, str) else weight.shape
            other: Any = torch.empty(shape, dtype=parameter.dtype, device="meta")
            other.__class__ = parameter.__class__
            other.__dict__ = dict(parameter.__dict__)
            other.weight_loader = self._wrap(other, weight)
            self._stand_ins[id(parameter)] = other
        return self._stand_ins[id(parameter)]

    def _wrap(self, stand_in: Any, weight: WritableWeight | str) -> Callable[..., Any]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        stock = getattr(stand_in, "weight_loader", default_weight_loader)

        def load(*args: Any, **named: Any) -> Any:
            if isinstance(weight, str):
                raise ExpertError(f"is {weight}, and cannot be changed while the base serves")
            filled = self._filled.get(weight.name)
            if filled is None:
                filled = self._filled[weight.name] = torch.zeros(weight.shape, dtype=self._dtype)
            self._touched.add(weight.name)
            real = filled.view(filled.shape)
            real.__class__ = stand_in.__class__
            real.__dict__ = dict(stand_in.__dict__)
            return stock(real, *args[1:], **named)

        return load
