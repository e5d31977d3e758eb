"""What policies may ask of the engine, answered by plain transformers: features alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from adapters.files.checkpoint import Checkpoint
from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Activations, Outputs, Window, feature_layer
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import EarlyFeatures, count_layers


class FeaturesProbe:
    """`router.probing.Probe` in plain transformers.

    Attributes:
        layers: How many decoder layers the base has.
    """

    def __init__(self, base: Path) -> None:
        plain = PlainModel.load(Checkpoint.open(base))
        self.layers = count_layers(plain.model)
        self._features = EarlyFeatures(plain, feature_layer(self.layers))

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        """Return the features of a text, or of a user's turn in the chat template."""
        return self._features([text], chat=chat)[0]

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        """Refuse: plain transformers compare nothing."""
        raise NotImplementedError

    async def activations(self, text: str) -> Activations:
        """Refuse: plain transformers read no activations."""
        raise NotImplementedError
