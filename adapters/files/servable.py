"""Which of a base's weights slots can serve the change of, and why not the others."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.model_config import TextModelConfig

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_LAYER = re.compile(r"(?:.+\.)?layers\.(?P<index>\d+)\..+\.weight")
_FINAL_NORM = re.compile(r"(?:.+\.)?(?:final_?layer_?)?norm")
_OTHER_LAYER = re.compile(r"(?P<place>(?:.+\.)?(?:h|block|blocks|layer))\.\d+\..+")
# Parts of names: of what reads images and sounds, of routers, and of what guesses further tokens.
_TOWER = re.compile(r"vis(ion|ual)|image|audio|speech|multi_modal|mm_projector|^encoder$")
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_FURTHER_TOKENS = frozenset({"mtp", "eh_proj", "nextn"})


@dataclass(frozen=True)
class ServableWeights:
    """Linear weights of the decoder layers that answer a request, an untied head and its embedding.

    What is not known of the base is taken to forbid.
    """

    layers: int | None = None
    """How many decoder layers answer a request; None if that is not known."""
    tied: bool = True
    """Whether the head is the embedding, or may be."""

    @classmethod
    def of(cls, base: Checkpoint) -> "ServableWeights":
        """Read it from a base's configuration and the names of its weights."""
        config = TextModelConfig.read(base.folder)
        has_head = any(weight.endswith(HEAD) for weight in base.files)
        if config is None:
            return cls(None, not has_head)
        return cls(config.layers, bool(config.tied) or not has_head)

    def explain_refusal(self, weight: str, shape: Sequence[int]) -> str | None:
        """Return why slots cannot serve a change of a weight of this shape; None if they can."""
        parts = weight.split(".")
        leaf = weight.removesuffix(".weight").rpartition(".")[2]
        layer = _LAYER.fullmatch(weight)
        beyond = bool(layer and self.layers is not None and int(layer["index"]) >= self.layers)
        at_end = weight.endswith((HEAD, EMBEDDING))
        reasons = {
            "text does not go through it": is_in_tower(weight),
            "it is of routed experts": "experts" in parts,
            "it chooses among routed experts": leaf in _ROUTERS,
            "it guesses further tokens": beyond or not _FURTHER_TOKENS.isdisjoint(parts),
            "it is no linear layer": len(shape) != 2 or is_norm(leaf),
            "the base's head and embedding are one weight": at_end and self.tied,
            _explain_name(weight): layer is None and not at_end,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def explain_unserved_delta(self, weight: str, shape: Sequence[int]) -> str | None:
        """Return why slots cannot apply a change of any weight that is not low-rank, as above.

        Of vectors they can those of the decoder's norms, of the norm after it, and the biases of
        linear weights that they serve.
        """
        if len(shape) != 1:
            return self.explain_refusal(weight, shape)
        module, _, leaf = weight.rpartition(".")
        if leaf == "bias" and not is_norm(module):
            return self.explain_refusal(f"{module}.weight", (1, 1))
        layer = _LAYER.fullmatch(f"{module}.weight")
        beyond = bool(layer and self.layers is not None and int(layer["index"]) >= self.layers)
        reasons = {
            "text does not go through it": is_in_tower(weight),
            "it guesses further tokens": beyond
            or not _FURTHER_TOKENS.isdisjoint(module.split(".")),
            "it is neither a norm nor a bias": not is_norm(module)
            or leaf not in ("weight", "bias"),
            _explain_name(weight): layer is None and not _FINAL_NORM.fullmatch(module),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def check(self, expert: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise ExpertError if slots cannot serve a change of some of these weights."""
        found = {
            w: reason for w, shape in shapes.items() if (reason := self.explain_refusal(w, shape))
        }
        if found:
            weight, reason = next(iter(found.items()))
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ExpertError(
                f"expert {expert!r} changes {weight}{more}, which slots cannot serve: {reason}."
                " Train it on the decoder's linear layers alone; or merge it into a full checkpoint"
                " with PEFT's merge_and_unload and add that with --rank, which keeps what can be"
                " served"
            )


NAMES_ALONE = ServableWeights()
"""What can be said of a base of which only the names of weights are known."""


def is_in_tower(weight: str) -> bool:
    """Return whether a weight is of what reads images or sounds, by its name."""
    return any(map(_TOWER.search, weight.split(".")))


def is_norm(module: str) -> bool:
    """Return whether a module is a norm, by its name."""
    return "norm" in module.rpartition(".")[2]


def _explain_name(weight: str) -> str:
    """Return why a weight outside of `layers.N` is not served."""
    other = _OTHER_LAYER.fullmatch(weight)
    if other:
        return f"the base calls its layers {other['place']}.N; slots serve layers.N alone"
    return "it is in no decoder layer"
