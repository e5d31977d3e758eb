"""The engine arguments that switch mixture slots on."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_KEY = "tta_serve"


_Count = Annotated[int, Field(ge=0)]
_strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_strict)
class Capacity:
    """What each worker keeps ready at most.

    experts: columns of the coefficient table   ranks: the sum of the experts' ranks, each its highest
    bytes: of their factors, on each tensor-parallel rank
    """

    experts: _Count = 64
    ranks: _Count = 1024
    bytes: _Count = 4 * 2**30


@dataclass(frozen=True, config=_strict)
class BankOptions:
    """What a worker needs to build the bank. experts: the (name, digest) of those it starts with

    gated: whether requests may be gated, for which it keeps canonical factors   trained: and by the library's trained gates
    """

    library: str
    experts: tuple[tuple[str, str], ...]
    tap_layer: int | None = None
    capacity: Capacity = Capacity()
    gated: bool = False
    trained: bool = False

    def engine_args(self, slots: int) -> dict[str, Any]:
        """Arguments for vLLM's engine, beside the model's own. slots: most requests in one batch, each with its own mix."""
        return {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": slots,
            "max_lora_rank": 8,  # of vLLM's own adapters; the bank's ranks are ours to choose
            "max_num_seqs": slots,
            "additional_config": {_KEY: asdict(self)},
            "worker_extension_cls": "tta_serve.engine.worker.WorkerExtension",
        }

    @classmethod
    def read(cls, additional_config: Any) -> "BankOptions | None":
        """The options in vLLM's `additional_config`, None if this engine is not ours."""
        if not isinstance(additional_config, Mapping) or _KEY not in additional_config:
            return None
        return TypeAdapter(cls).validate_python(additional_config[_KEY])
