"""Names of models, as vLLM's serving layer checks and repeats them."""

from typing import Any

from tta_serve.engine.client import OWNER


def serve_names(models: Any) -> None:
    """Let vLLM's `OpenAIServingModels` take every name, since `Merging` has refused those that do not exist, and let answers
    carry the name that was asked for.
    """
    served = models.base_model_paths[0].name

    def model_name(lora_request: Any = None) -> str:
        owner = OWNER.get()
        return served if owner is None else owner.model or served

    models.is_base_model = lambda name: True
    models.model_name = model_name
