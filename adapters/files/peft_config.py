"""The adapter_config.json of a PEFT LoRA: every option is honoured, harmless or refused."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from adapters.errors import ExpertError
from adapters.files.facts import CONFIG_FILE, is_peft_folder
from adapters.files.safetensors_reader import check_size, confine

MERGE = "merge it into a full checkpoint with PEFT's merge_and_unload and add that as a fine-tune"
_RETRAIN = "retrain it as a plain LoRA"
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        # Of a base whose head is its embedding, neither of which slots change.
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        # What it changes is the pass backward.
        "velora_config",
        # Of ms-swift and of the first versions of PEFT.
        "lora_dtype",
        "lorap_emb_lr",
        "lorap_lr_ratio",
        "merge_weights",
    }
)
"""Options that do not change what a trained adapter computes, or only with one of the others."""
HONOURED = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
"""Options that are read, and followed as PEFT does."""
REFUSED = {
    "fan_in_fan_out": (
        "its base stores weights transposed (Conv1D), which would transpose the change",
        MERGE,
    ),
    "trainable_token_indices": ("it retrains token embeddings", MERGE),
    "kasa_config": ("KaSA cuts singular values off the base's weights", MERGE),
    "target_parameters": (
        "it adapts bare parameters, as the routed experts of a mixture are, which slots cannot"
        " serve",
        "retrain it with target_modules that name attention's projections alone, such as q_proj and"
        " v_proj; 'all-linear' takes routed experts and routers too",
    ),
    "layer_replication": ("it repeats layers of the base", _RETRAIN),
    "use_bdlora": ("its factors are block-diagonal", _RETRAIN),
    "use_qalora": ("its A reads averages of the input", _RETRAIN),
    "monteclora_config": ("it samples its factors", _RETRAIN),
    "arrow_config": ("it routes among adapters by itself", _RETRAIN),
}
"""Options that change the arithmetic in ways that are not followed: the reason, and what to do."""
# Those of PEFT's initialisations that leave the base's weights as they are; the others (PiSSA,
# OLoRA, CorDA, LoRA-GA, LoftQ) change them, so that B A is no change of the base.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# Classifiers have a head of their own; the base has one for text.
_TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
_BIASES = ("none", "all", "lora_only")
_ALL_LINEAR = "all-linear"
_NOT_ALL_LINEAR = re.compile(r"(.*\.)?(lm_head|embed_tokens)")
_MAX_CONFIG = 1 << 24
_MAX_PATTERN = 1 << 14
_MAX_INVOCATION = 1024


@dataclass
class LoraSettings:
    """What a configuration says of the modules of its adapter, by the names that PEFT has."""

    expert: str
    """The expert's name, for errors."""
    options: Mapping[str, Any]
    """All options, checked."""
    seconds: float = 10.0
    """How long its patterns may still take to match, in all."""

    @property
    def dora(self) -> bool:
        """Whether each module has a magnitude for every row of its weight."""
        return bool(self.options.get("use_dora"))

    @property
    def trains_biases(self) -> bool:
        """Whether copies of biases are part of it."""
        return bool(self.options.get("bias", "none") != "none")

    @property
    def adds_biases(self) -> bool:
        """Whether B has a bias."""
        return bool(self.options.get("lora_bias"))

    @property
    def trains_by_velora(self) -> bool:
        """Whether what its training kept for passes backward (VeLoRA) may be in the folder."""
        return self.options.get("velora_config") is not None

    @property
    def invocation(self) -> tuple[int, ...]:
        """The tokens from whose last place in a prompt on it acts (aLoRA); none if from the start.

        Activated LoRA: Greenewald et al. 2025, arXiv 2504.12397.
        """
        return tuple(self.options.get("alora_invocation_tokens") or ())

    @property
    def needs_base(self) -> bool:
        """Whether what it changes cannot be told without the base's own weights."""
        return self.dora or self.trains_biases or self.adds_biases or bool(self._saved)

    def rank(self, module: str) -> int:
        """Return the rank that a module must have."""
        return int(self._by_pattern("rank_pattern", module, self.options["r"]))

    def scale(self, module: str) -> float:
        """Return what PEFT multiplies the product B A of a module with.

        That is alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski 2023, arXiv
        2312.03732).
        """
        rank = self.rank(module)
        alpha = self._by_pattern("alpha_pattern", module, self.options["lora_alpha"])
        return float(alpha / (rank**0.5 if self.options.get("use_rslora") else rank))

    def targets(self, module: str) -> bool:
        """Return whether PEFT makes factors for a module.

        Raises ExpertError for patterns that take too long.
        """
        wanted: str | list[str] = self.options["target_modules"]
        excluded = self.options.get("exclude_modules")
        if excluded and self._names(excluded, module):
            return False
        if any(self._matches(rf"(^|.*\.){saved}($|\..*)", module) for saved in self._saved):
            return False
        if isinstance(wanted, str) and wanted.lower() == _ALL_LINEAR:
            return not _NOT_ALL_LINEAR.fullmatch(module)
        if isinstance(wanted, str):
            return self._names(wanted, module)
        if module in wanted:
            return True
        return self._names(wanted, module) and self._has_wanted_layer(module)

    def saves(self, weight: str) -> bool:
        """Return whether a weight is one of a module that is saved whole."""
        parts = weight.split(".")
        modules = [".".join(parts[:end]) for end in range(1, len(parts))]
        return any(module.endswith(saved) for module in modules for saved in self._saved)

    @property
    def _saved(self) -> list[str]:
        return list(self.options.get("modules_to_save") or ())

    def _names(self, names: str | list[str], module: str) -> bool:
        if isinstance(names, str):
            return self._match(names, module, whole=True) is not None
        return module in names or module.endswith(tuple(f".{name}" for name in names))

    def _has_wanted_layer(self, module: str) -> bool:
        layers = self.options.get("layers_to_transform")
        patterns = self.options.get("layers_pattern")
        if layers is None or layers == []:
            return True
        patterns = [patterns] if isinstance(patterns, str) and patterns else patterns or []
        layer = r"\.(?P<layer>\d+)\."
        tried = [rf"(?:^|.*?\.){pattern}{layer}" for pattern in patterns]
        for pattern in tried or [rf".*?\.[^.]*{layer}"]:
            if found := self._match(pattern, module):
                return int(found["layer"]) in (layers if isinstance(layers, list) else [layers])
        return False

    def _by_pattern(self, option: str, module: str, default: Any) -> Any:
        """Return the value of the first key that matches the end of a module's name, as PEFT does.

        Keys are regular expressions, and an end begins at a dot.
        """
        for key, value in (self.options.get(option) or {}).items():
            if self._matches(rf"(.*\.)?({key})$", module):
                return value
        return default

    def _matches(self, pattern: str, module: str) -> bool:
        return self._match(pattern, module) is not None

    def _match(self, pattern: str, module: str, *, whole: bool = False) -> Any:
        """Match as `re` does, but within a time, since the pattern may be made to run for ever."""
        start = time.monotonic()
        compiled = _compile(pattern)
        match = compiled.fullmatch if whole else compiled.match
        try:
            found = match(module, timeout=max(self.seconds, 1e-3))
        except TimeoutError:
            raise ExpertError(
                f"expert {self.expert!r}: patterns in {CONFIG_FILE} take too long to match; name"
                " modules, or use simple patterns"
            ) from None
        self.seconds -= time.monotonic() - start
        return found


def read_settings(path: Path, name: str) -> LoraSettings:
    """Return the configuration of an adapter, of which nothing is left out.

    Raises ExpertError for an option whose arithmetic is not followed, for one that is on and not
    known, and for a value that PEFT could not use.
    """
    if not is_peft_folder(path):
        raise ExpertError(
            f"expert {name!r}: {path} has no {CONFIG_FILE}; a PEFT adapter folder is wanted"
        )
    config = _read_json(path, name)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind != "LORA":
        raise ExpertError(
            f"expert {name!r}: peft_type is {kind!r}, only LORA is supported; {MERGE}"
        )
    settings = LoraSettings(name, config)
    for check in (
        _check_refused,
        _check_unknown,
        _check_choices,
        _check_numbers,
        _check_names,
        _check_invocation,
    ):
        check(settings)
    return settings


def _read_json(path: Path, name: str) -> Any:
    file = confine(path, CONFIG_FILE)
    try:
        check_size(file, _MAX_CONFIG)
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ExpertError):
            raise
        raise ExpertError(f"expert {name!r}: {CONFIG_FILE} is not JSON: {error}") from None


def _check_refused(settings: LoraSettings) -> None:
    """Raise ExpertError for options that change the arithmetic in ways that are not followed."""
    for option, (reason, advice) in REFUSED.items():
        value = settings.options.get(option)
        # An empty list targets nothing; an empty nested configuration is one of defaults.
        if value is not None and value is not False and value != []:
            raise ExpertError(f"expert {settings.expert!r}: {option} is set and {reason}; {advice}")
    init = settings.options.get("init_lora_weights")
    if not any(init is known or init == known for known in _INITIALISATIONS):
        raise ExpertError(
            f"expert {settings.expert!r}: init_lora_weights={init!r} changes the base's weights;"
            " save it with save_pretrained's path_initial_model_for_weight_conversion, which makes"
            f" it a plain LoRA, or {MERGE}"
        )


def _check_unknown(settings: LoraSettings) -> None:
    """Raise ExpertError for an option that is on and not known: it may change the arithmetic."""
    known = HARMLESS | HONOURED | REFUSED.keys()
    unknown = sorted(o for o, value in settings.options.items() if value and o not in known)
    if unknown:
        named = ", ".join(o if o.isprintable() else ascii(o) for o in unknown[:5])
        raise ExpertError(
            f"expert {settings.expert!r}: {CONFIG_FILE} sets {named}, which is not"
            f" known here and may change what the adapter computes; if it does not, remove it, else"
            f" {MERGE}"
        )


def _check_choices(settings: LoraSettings) -> None:
    """Raise ExpertError for a value of an option that has only a few."""
    for option in ("use_rslora", "use_dora", "lora_bias"):
        if settings.options.get(option) not in (None, True, False):
            raise _not(settings, option, "true or false")
    if settings.options.get("bias", "none") not in _BIASES:
        raise _not(settings, "bias", f"one of {', '.join(_BIASES)}")
    if settings.options.get("task_type") not in _TASKS:
        raise ExpertError(
            f"expert {settings.expert!r}: task_type={settings.options['task_type']!r} is answered"
            " by a head of its own, which the base does not have; retrain it with"
            " task_type='CAUSAL_LM'"
        )


def _check_numbers(settings: LoraSettings) -> None:
    options = settings.options
    if not _is_positive(options.get("r")) or not isinstance(options["r"], int):
        raise _not(settings, "r", "a positive number")
    if not _is_positive(options.get("lora_alpha")):
        raise _not(settings, "lora_alpha", "a positive number")
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = options.get(option) or {}
        if not isinstance(pattern, dict) or not all(
            _is_pattern(key) and _is_positive(value) for key, value in pattern.items()
        ):
            raise _not(settings, option, "positive numbers by names of modules or simple patterns")
    if not all(isinstance(rank, int) for rank in (options.get("rank_pattern") or {}).values()):
        raise _not(settings, "rank_pattern", "whole numbers")


def _check_names(settings: LoraSettings) -> None:
    options = settings.options
    for option in ("target_modules", "exclude_modules"):
        value = options.get(option)
        if not (_is_pattern(value, "{}") if isinstance(value, str) else _are_texts(value)):
            raise _not(settings, option, "names of modules, or a pattern")
    for option in ("layers_pattern", "modules_to_save"):
        value = options.get(option)
        texts = [value] if isinstance(value, str) and option == "layers_pattern" else value
        if not _are_texts(texts) or not all(map(_is_pattern, texts or ())):
            raise _not(settings, option, "a list of names of modules")
    if options.get("target_modules") is None:
        raise ExpertError(
            f"expert {settings.expert!r}: {CONFIG_FILE} has no target_modules, so that PEFT would"
            " choose them by the architecture; name the modules that have factors"
        )
    layers = options.get("layers_to_transform")
    listed = layers if isinstance(layers, list) else [layers or 0]
    if not all(type(layer) is int for layer in listed):
        raise _not(settings, "layers_to_transform", "numbers of layers")
    if isinstance(options["target_modules"], str) and (
        layers is not None or options.get("layers_pattern")
    ):
        raise ExpertError(
            f"expert {settings.expert!r}: layers_to_transform and layers_pattern in {CONFIG_FILE}"
            " need target_modules as a list, as PEFT does"
        )


def _check_invocation(settings: LoraSettings) -> None:
    option = "alora_invocation_tokens"
    tokens = settings.options.get(option) or []
    listed = isinstance(tokens, list) and all(type(t) is int and 0 <= t < 1 << 31 for t in tokens)
    if not listed or len(tokens) > _MAX_INVOCATION:
        raise _not(settings, option, f"a list of at most {_MAX_INVOCATION} tokens' numbers")


def _not(settings: LoraSettings, option: str, wanted: str) -> ExpertError:
    return ExpertError(
        f"expert {settings.expert!r}: {option} in {CONFIG_FILE} must be {wanted}, not"
        f" {settings.options.get(option)!a:.80}"
    )


def _is_positive(value: object) -> bool:
    return type(value) in {int, float} and 0 < value < 1e30  # type: ignore[operator]


def _are_texts(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(text, str) for text in value)
    )


def _is_pattern(text: object, frame: str = r"(.*\.)?({})$") -> bool:
    """Whether it is a regular expression that means the same to `re` and to `regex`."""
    if not isinstance(text, str) or len(text) > _MAX_PATTERN or re.search(r"\[:|\{[^\d,]", text):
        return False
    try:
        re.compile(frame.replace("{}", text))
        regex.compile(frame.replace("{}", text))
    except (re.error, regex.error, OverflowError, RecursionError):
        return False
    return True


@lru_cache(maxsize=1 << 14)
def _compile(pattern: str) -> Any:
    return regex.compile(pattern)
