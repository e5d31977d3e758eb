"""The engine arguments that switch mixture slots on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_KEY = "tta_serve"


@dataclass(frozen=True)
class BankOptions:
    """What a worker needs to build the bank. experts: (name, digest), in the order of the coefficient table's columns."""

    library: str
    experts: tuple[tuple[str, str], ...]
    tap_layer: int | None = None

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
        given = additional_config[_KEY]
        return cls(given["library"], tuple((n, d) for n, d in given["experts"]), given["tap_layer"])
