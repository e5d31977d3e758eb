"""The engine arguments that switch mixture slots on."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_KEY = "tta_serve"
_Count = Annotated[int, Field(ge=0)]
_SCHEDULER = "tta_serve.engine.worker.dense.dense_scheduler.DenseScheduler"
_strict = ConfigDict(extra="forbid", use_attribute_docstrings=True)

MOST_POLICIES_WITHIN = 32
"""How many policies that decide inside the pass a worker keeps."""


@dataclass(frozen=True, config=_strict)
class Capacity:
    """How many experts each worker keeps ready at most."""

    experts: _Count = 64
    """The experts, each a column of the coefficient table."""
    ranks: _Count = 1024
    """The sum of the experts' ranks, each expert's being its highest."""
    bytes: _Count = 4 * 2**30
    """The bytes of their factors, on each tensor-parallel rank."""


@dataclass(frozen=True, config=_strict)
class DenseOptions:
    """How each worker keeps dense experts, and how those who need different ones take turns."""

    bytes: _Count = 8 * 2**30
    """The bytes of their deltas and of clean copies of what they change, on each tensor-parallel
    rank."""
    device: Literal["device", "host"] = "device"
    """Where those are kept: beside the weights, or in the host's memory."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """The dtype of the deltas; `stored` is the one that they have in the library."""
    max_wait_s: Annotated[float, Field(gt=0)] = 5.0
    """How long the requests of a dense mix wait at most for their turn, where they need not wait
    for memory."""
    fold: bool = False
    """Whether a low-rank mix that all of a step's requests use, for long, is written into the
    weights."""


@dataclass(frozen=True, config=_strict)
class BankOptions:
    """What a worker needs to serve mixes."""

    library: str
    """The folder of the library."""
    experts: tuple[tuple[str, str], ...]
    """The (name, digest) of each expert that the worker starts with."""
    tap_layer: int | None = None
    """The decoder layer whose input routing reads, None for none."""
    capacity: Capacity = Capacity()
    """How many experts the worker keeps ready at most."""
    gated: bool = False
    """Whether requests may be gated, for which the worker keeps canonical factors."""
    trained: bool = False
    """Whether they may also be gated by the library's trained gates."""
    dense: DenseOptions | None = None
    """How dense experts are served; None for an engine that serves none."""

    def engine_args(self, slots: int) -> dict[str, Any]:
        """Return arguments for vLLM's engine, beside the model's own.

        Args:
            slots: The most requests in one batch, each with its own mix.
        """
        return {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": slots,
            "max_lora_rank": 8,  # of vLLM's own adapters; the bank's ranks are ours to choose
            "max_num_seqs": slots,
            "additional_config": {_KEY: asdict(self)},
            "worker_extension_cls": "tta_serve.engine.worker.extension.WorkerExtension",
            **({"scheduler_cls": _SCHEDULER} if self.dense else {}),
        }

    @classmethod
    def read(cls, additional_config: Any) -> "BankOptions | None":
        """Return the options in vLLM's `additional_config`, None if the engine is not ours."""
        if not isinstance(additional_config, Mapping) or _KEY not in additional_config:
            return None
        return TypeAdapter(cls).validate_python(additional_config[_KEY])
