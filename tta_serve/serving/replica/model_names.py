"""Names of models, as vLLM's serving layer checks and repeats them."""

from typing import Any

from tta_serve.engine.client.engine_client import OWNER


def serve_names(models: Any) -> None:
    """Let vLLM take every name, and let answers carry the name that was asked for.

    `Merging` has refused names that do not exist before vLLM sees them.
    """
    served = models.base_model_paths[0].name

    def model_name(lora_request: Any = None) -> str:
        owner = OWNER.get()
        return served if owner is None else owner.model or served

    models.is_base_model = lambda name: True
    models.model_name = model_name
