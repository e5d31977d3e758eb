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
    """How many experts each worker keeps ready at most."""

    experts: _Count = 64
    """The experts, each a column of the coefficient table."""
    ranks: _Count = 1024
    """The sum of the experts' ranks, each expert's being its highest."""
    bytes: _Count = 4 * 2**30
    """The bytes of their factors, on each tensor-parallel rank."""


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
        }

    @classmethod
    def read(cls, additional_config: Any) -> "BankOptions | None":
        """Return the options in vLLM's `additional_config`, None if the engine is not ours."""
        if not isinstance(additional_config, Mapping) or _KEY not in additional_config:
            return None
        return TypeAdapter(cls).validate_python(additional_config[_KEY])
