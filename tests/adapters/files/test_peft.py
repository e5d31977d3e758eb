"""PEFT folders: the same numbers as PEFT, or a refusal by name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import BdLoraConfig, KasaConfig, MontecloraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import ExpertError, LibraryError
from adapters.expert import Expert, LowRank
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.files.peft import load_peft, write_peft
from adapters.library.library import Library
from tests.factories.checkpoints import make_model

# PEFT warns of some of what these tests ask it for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Toy(nn.Module):
    """Two layers of linear maps, enough for PEFT's patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 10), "down": nn.Linear(10, 6)}) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["down"](layer["up"](x))
        return x


def save_adapter(folder: Path, model: nn.Module | None = None, **config: Any) -> nn.Module:
    """Let PEFT save an adapter with random B, and return the adapted model."""
    torch.manual_seed(0)
    adapted: nn.Module = get_peft_model(
        model or Toy(), LoraConfig(**{"target_modules": ["up", "down"], **config})
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapted.save_pretrained(str(folder))  # type: ignore[operator]
    return adapted


def assert_same_deltas(expert: Expert, model: nn.Module, count: int) -> None:
    """Assert that the expert's delta of every module is that of PEFT's model."""
    layers: dict[str, Any] = {
        name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")
    }
    assert {name.removeprefix("base_model.model.") for name in layers} == expert.factors.keys()
    assert len(layers) == count
    for module, factor in expert.factors.items():
        delta = layers[f"base_model.model.{module}"].get_delta_weight("default")
        torch.testing.assert_close(factor.dense(), delta)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 16,
            "rank_pattern": {"layers.1.up": 2},
            "alpha_pattern": {"down": 3},
        },
    ],
)
def test_the_delta_is_pefts(tmp_path: Path, config: dict[str, Any]) -> None:
    model = save_adapter(tmp_path / "e", **config)
    assert_same_deltas(load_peft(tmp_path / "e"), model, 4)


@pytest.mark.parametrize(
    ("targets", "count"),
    [("all-linear", 14), (r".*layers\.1\..*_proj", 7), (["q_proj", "1.mlp.down_proj"], 3)],
)
def test_however_modules_are_named_the_delta_is_pefts(
    tmp_path: Path, targets: str | list[str], count: int
) -> None:
    model = save_adapter(tmp_path / "e", make_model(), r=2, target_modules=targets)
    assert_same_deltas(load_peft(tmp_path / "e"), model, count)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica", "eva"])
def test_an_initialisation_that_leaves_the_base_alone_is_read(
    tmp_path: Path, init: bool | str
) -> None:
    model = save_adapter(tmp_path / "e", r=4, init_lora_weights=init)
    assert_same_deltas(load_peft(tmp_path / "e"), model, 4)
    assert_same_weights(model, Toy)


def assert_same_weights(model: nn.Module, kind: type[Toy]) -> None:
    """PEFT has left the base's weights as they were made from this seed."""
    torch.manual_seed(0)
    for name, value in kind().named_parameters():
        module, _, leaf = name.rpartition(".")
        assert model.get_parameter(f"base_model.model.{module}.base_layer.{leaf}").equal(value)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_has_changed_its_base_must_be_converted(tmp_path: Path, init: str) -> None:
    torch.manual_seed(0)
    base = Toy()
    model: Any = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, target_modules=["up", "down"], init_lora_weights=init)
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn(parameter.shape))
    model.save_pretrained(str(tmp_path / "e"))
    with pytest.raises(ExpertError, match="path_initial_model_for_weight_conversion"):
        load_peft(tmp_path / "e")
    tuned = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(
        str(tmp_path / "c"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    for module, factor in load_peft(tmp_path / "c").factors.items():
        change = tuned.get_parameter(f"{module}.weight") - base.get_parameter(f"{module}.weight")
        torch.testing.assert_close(factor.dense(), change, rtol=1e-4, atol=1e-5)


def test_shards_are_one_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "e", r=4)
    whole = load_peft(tmp_path / "e")
    tensors = load_file(tmp_path / "e" / WEIGHTS_FILE)
    (tmp_path / "e" / WEIGHTS_FILE).unlink()
    places: dict[str, str] = {}
    for number, keys in enumerate((sorted(tensors)[:3], sorted(tensors)[3:]), 1):
        file = f"adapter_model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, tmp_path / "e" / file)
        places |= dict.fromkeys(keys, file)
    assert load_peft(tmp_path / "e").digest == whole.digest
    (tmp_path / "e" / f"{WEIGHTS_FILE}.index.json").write_text(
        json.dumps({"weight_map": places}), encoding="utf-8"
    )
    assert load_peft(tmp_path / "e").digest == whole.digest
    (tmp_path / "e" / file).unlink()
    with pytest.raises(ExpertError, match="No such file"):
        load_peft(tmp_path / "e")


def test_equal_content_has_an_equal_digest_and_other_content_another(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", r=4, lora_alpha=16)
    save_adapter(tmp_path / "b", r=4, lora_alpha=16)
    save_adapter(tmp_path / "c", r=4, lora_alpha=15)
    a, b, c = (load_peft(tmp_path / n).digest for n in "abc")
    assert a == b != c


MERGE = "merge_and_unload and add that as a fine-tune"
ADD = "tta experts add FOLDER --name NAME --rank R (or --dense)"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, ["use_dora", "DoRA", ADD]),
        ({"bias": "all"}, ["bias is set", ADD]),
        ({"bias": "lora_only"}, ["bias is set", ADD]),
        ({"lora_bias": True}, ["lora_bias", ADD]),
        ({"modules_to_save": ["up"], "target_modules": ["down"]}, ["modules_to_save", ADD]),
        ({"kasa_config": KasaConfig(), "r": 2}, ["kasa_config", MERGE]),
        ({"monteclora_config": MontecloraConfig()}, ["monteclora_config", "retrain"]),
        (
            {"use_bdlora": BdLoraConfig(target_modules_bd_a=["up"], nblocks=2, match_strict=False)},
            ["use_bdlora", "retrain"],
        ),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], says: list[str]
) -> None:
    save_adapter(tmp_path / "e", **{"r": 4, **config})
    assert_refused(tmp_path / "e", says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices", MERGE]),
        (
            {"target_modules": ["q_proj", "embed_tokens"]},
            ["embed_tokens.base_layer.weight is a copy of a weight of the base", ADD],
        ),
        (
            {"target_modules": ["lm_head"]},
            ["lm_head.base_layer.weight is a copy of a weight of the base", ADD],
        ),
        ({"layer_replication": [(0, 2), (1, 2)]}, ["layer_replication", "retrain"]),
        (
            {"target_parameters": ["q_proj.weight"], "target_modules": []},
            ["target_parameters", "retrain"],
        ),
    ],
)
def test_what_is_no_linear_layer_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], says: list[str]
) -> None:
    save_adapter(tmp_path / "e", make_model(), **{"r": 2, "target_modules": ["q_proj"], **config})
    assert_refused(tmp_path / "e", says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("use_qalora", True, ["use_qalora", "retrain"]),
        ("arrow_config", {"top_k": 1}, ["arrow_config", "retrain"]),
        (
            "init_lora_weights",
            "loftq",
            ["init_lora_weights='loftq' changes the base's weights", MERGE],
        ),
        (
            "init_lora_weights",
            "corda",
            ["init_lora_weights='corda' changes the base's weights", MERGE],
        ),
        (
            "init_lora_weights",
            "lora_ga",
            ["init_lora_weights='lora_ga' changes the base's weights", MERGE],
        ),
        ("init_lora_weights", "of tomorrow", ["init_lora_weights='of tomorrow'"]),
        ("peft_type", "LOHA", ["'LOHA'", "only LORA"]),
        ("r", 0, ["r in adapter_config.json must be a positive number"]),
        ("lora_alpha", "16", ["lora_alpha in adapter_config.json"]),
        ("lora_alpha", float("nan"), ["lora_alpha in adapter_config.json"]),
        ("rank_pattern", ["up"], ["rank_pattern in adapter_config.json"]),
        ("rank_pattern", {"up": "4"}, ["rank_pattern in adapter_config.json"]),
        ("alpha_pattern", {"up": 0}, ["alpha_pattern in adapter_config.json"]),
        ("alpha_pattern", {"up(": 4}, ["alpha_pattern in adapter_config.json"]),
        ("alpha_pattern", {"(?i)up": 4}, ["alpha_pattern in adapter_config.json"]),
        ("alpha_pattern", {"a" * 20_000: 4}, ["simple patterns"]),
        ("alpha_pattern", {"[[:alpha:]]": 4}, ["simple patterns"]),
        ("alpha_pattern", {"up{e<=1}": 4}, ["simple patterns"]),
    ],
)
def test_a_config_that_is_not_a_plain_loras_is_refused(
    tmp_path: Path, option: str, value: object, says: list[str]
) -> None:
    save_adapter(tmp_path / "e", r=4)
    file = tmp_path / "e" / CONFIG_FILE
    file.write_text(
        json.dumps(json.loads(file.read_text(encoding="utf-8")) | {option: value}), encoding="utf-8"
    )
    assert_refused(tmp_path / "e", says)


def assert_refused(folder: Path, says: list[str]) -> None:
    with pytest.raises(ExpertError, match="'e'") as error:
        load_peft(folder)
    assert all(text in str(error.value) for text in says), str(error.value)


class Transposed(nn.Module):
    """One layer of GPT-2's kind, which stores its weight as [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Conv1D(8, 8)


def test_a_transposed_base_is_refused_and_a_flag_without_one_is_not(tmp_path: Path) -> None:
    """PEFT turns the flag on for Conv1D and off for Linear.

    A saved flag is thus true just where the base is transposed.
    """
    save_adapter(tmp_path / "e", Transposed(), r=4, target_modules=["up"])
    assert_refused(tmp_path / "e", ["fan_in_fan_out", "transposed", MERGE])
    model = save_adapter(tmp_path / "linear", r=4, fan_in_fan_out=True)
    assert_same_deltas(load_peft(tmp_path / "linear"), model, 4)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    save_adapter(tmp_path / "e", r=4)
    (tmp_path / "e" / CONFIG_FILE).write_text(content, encoding="latin-1")
    assert_refused(tmp_path / "e", [])


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    save_adapter(tmp_path / "e", r=4)
    (tmp_path / "e" / file).rename(tmp_path / file)
    (tmp_path / "e" / file).symlink_to(tmp_path / file)
    with pytest.raises(LibraryError, match="leads out"):
        load_peft(tmp_path / "e")


class Deep(nn.Module):
    """Modules of which the name of one ends with that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.inner = Toy().layers, Toy()

    def prepare_inputs_for_generation(self) -> None:
        """PEFT asks causal language models for it."""


def test_what_is_written_is_what_peft_and_we_read(tmp_path: Path) -> None:
    ranks = {"layers.0.up": 2, "inner.layers.0.up": 3, "inner.layers.1.down": 3, "layers.1.down": 1}
    shapes = {"up": (10, 6), "down": (6, 10)}
    factors = {}
    for module, rank in ranks.items():
        out, in_ = shapes[module.rpartition(".")[2]]
        factors[module] = LowRank(torch.randn(in_, rank).t(), torch.randn(out, rank))
    expert = Expert("e", factors)
    write_peft(expert, tmp_path / "e", "some/base")
    assert load_peft(tmp_path / "e").digest == expert.digest
    assert (
        json.loads((tmp_path / "e" / CONFIG_FILE).read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
        == "some/base"
    )
    model = PeftModel.from_pretrained(Deep(), str(tmp_path / "e"))
    for module, factor in expert.factors.items():
        layer: Any = model.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(layer.get_delta_weight("default"), factor.dense())


def test_what_is_written_works_as_a_lora_of_a_transformers_model(tmp_path: Path) -> None:
    save_adapter(
        tmp_path / "e",
        make_model(),
        r=2,
        target_modules="all-linear",
        rank_pattern={"1.mlp.up_proj": 3},
        lora_alpha=5,
    )
    expert = load_peft(tmp_path / "e")
    write_peft(expert, tmp_path / "w", "some/base")
    assert load_peft(tmp_path / "w").digest == expert.digest
    tokens = torch.arange(12).reshape(1, 12)
    logits = [
        PeftModel.from_pretrained(make_model(), str(tmp_path / name))(tokens).logits
        for name in "ew"
    ]
    torch.testing.assert_close(*logits)
    assert not torch.allclose(logits[0], make_model()(tokens).logits, atol=1e-3)


def test_an_adapter_is_not_written_over(tmp_path: Path) -> None:
    save_adapter(tmp_path / "e", r=4)
    with pytest.raises(ExpertError, match="holds an adapter already"):
        write_peft(load_peft(tmp_path / "e"), tmp_path / "e", "base")


def damaged(folder: Path, change: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "lora_A" in k)
    if change == "nan":
        tensors[key][0, 0] = float("nan")
    elif change == "missing":
        del tensors[key]
    elif change == "foreign":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    elif change == "integers":
        tensors[key] = tensors[key].to(torch.int8)
    elif change == "cube":
        tensors[key] = tensors[key][:, :, None].clone()
    elif change == "rank":
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(
            json.dumps({**config, "r": 5}), encoding="utf-8"
        )
    save_file(tensors, file)
    if change == "pickle":
        torch.save(tensors, folder / "adapter_model.bin")
        file.unlink()
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", "NaN"),
        ("missing", "only the B factor"),
        ("foreign", "lm_head.weight is not a LoRA factor"),
        ("integers", "in float32, float16 or bfloat16"),
        ("cube", "wanted [rank, in]"),
        ("rank", "has rank 4, its config says 5"),
        ("pickle", "is a pickle"),
        ("cut", "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_whole(tmp_path: Path, change: str, says: str) -> None:
    save_adapter(tmp_path / "e", r=4, lora_alpha=16)
    damaged(tmp_path / "e", change)
    with pytest.raises(ExpertError) as error:
        load_peft(tmp_path / "e")
    assert says in str(error.value)


def test_a_library_lists_its_experts_and_their_examples(tmp_path: Path) -> None:
    save_adapter(tmp_path / "sql", r=4)
    save_adapter(tmp_path / "math", r=2)
    (tmp_path / "sql" / "examples.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    library = Library.open(tmp_path)
    assert library.names == ("math", "sql")
    assert library.examples("sql") == ["first", "second"]
    assert library.examples("math") == []


@pytest.mark.parametrize("name", ["base", "auto", "a b", "a:b", "ünïcode"])
def test_a_name_that_clients_could_not_use_is_refused(tmp_path: Path, name: str) -> None:
    save_adapter(tmp_path / name, r=2)
    with pytest.raises(LibraryError, match="expert name"):
        Library.open(tmp_path)


def test_a_link_out_of_the_library_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "elsewhere", r=2)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "e").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LibraryError, match="out of the library"):
        Library.open(tmp_path / "library")


def test_an_empty_or_missing_library_says_what_is_wanted(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LibraryError, match=r"PEFT adapter folder|no such folder"):
            Library.open(root)


def test_the_package_is_ours_and_not_the_one_of_that_name_on_the_index() -> None:
    import adapters
    import router

    root = Path(__file__).resolve().parents[3]
    assert [Path(str(m.__file__)).parent.parent for m in (adapters, router)] == [root, root]
