"""Full fine-tunes as their difference from the base: exact, or refused by the names of weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.finetune import TaskVector
from tests.factories.checkpoints import SINGLE, make_model, save_model

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
VALUE = "v_head.summary.weight"

Edit = Callable[[dict[str, Tensor]], object]


def edited(source: Checkpoint, folder: Path, edit: Edit) -> Checkpoint:
    """Copy a checkpoint, with its tensors changed by a function."""
    tensors = load_file(source.folder / SINGLE)
    edit(tensors)
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    return Checkpoint.open(folder)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return save_model(make_model(), tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_base_plus_delta_is_the_fine_tune(tmp_path: Path, dtype: torch.dtype) -> None:
    base, tuned = make_model(0, dtype), make_model(1, dtype)
    vector = TaskVector(
        save_model(base, tmp_path / "base"), save_model(tuned, tmp_path / "tuned", "5KB")
    )
    states = base.state_dict(), tuned.state_dict()
    assert vector.shapes == {n: tuple(v.shape) for n, v in states[0].items() if "norm" not in n}
    assert vector.nbytes == sum(states[1][weight].nbytes for weight in vector.shapes)
    for weight in vector.shapes:
        delta = vector.delta(weight)
        assert delta.dtype == torch.float32
        assert delta.equal(states[1][weight].float() - states[0][weight].float())


def test_only_what_differs_is_touched(tmp_path: Path, base: Checkpoint) -> None:
    vector = TaskVector(base, edited(base, tmp_path / "tuned", lambda t: t[UP][3, 4].add_(1)))
    assert vector.shapes == {UP: (24, 16)}
    assert vector.nbytes == 24 * 16 * 4
    assert vector.delta(UP).nonzero().tolist() == [[3, 4]]
    with pytest.raises(KeyError):
        vector.delta(NORM)


def test_a_delta_is_the_callers_own(tmp_path: Path, base: Checkpoint) -> None:
    vector = TaskVector(base, edited(base, tmp_path / "tuned", lambda t: t[UP].add_(1)))
    vector.delta(UP).zero_()
    assert vector.delta(UP).any()


def test_dtypes_may_differ_and_equal_values_are_untouched(tmp_path: Path) -> None:
    base = save_model(make_model(0, torch.bfloat16), tmp_path / "base")
    tuned = edited(
        base,
        tmp_path / "tuned",
        lambda t: t.update({n: v.float() for n, v in t.items()}) or t[UP].mul_(1.001),
    )
    vector = TaskVector(base, tuned)
    assert set(vector.shapes) == {UP}
    assert vector.delta(UP).equal(tuned.read(UP) - base.read(UP).float())


def test_equal_bytes_of_another_dtype_are_a_change(tmp_path: Path) -> None:
    base = save_model(make_model(0, torch.bfloat16), tmp_path / "base")
    vector = TaskVector(
        base, edited(base, tmp_path / "tuned", lambda t: t.update({UP: t[UP].view(torch.float16)}))
    )
    assert set(vector.shapes) == {UP}
    assert vector.delta(UP).equal(base.read(UP).view(torch.float16).float() - base.read(UP).float())


def test_minus_zero_is_zero(tmp_path: Path, base: Checkpoint) -> None:
    zero = edited(base, tmp_path / "zero", lambda t: t[UP].zero_())
    assert not TaskVector(zero, edited(zero, tmp_path / "minus", lambda t: t[UP].neg_())).shapes


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop(UP), f"lacks: {UP};"),
        (lambda t: t.update(more=torch.ones(1)), "more is left out, the base has none;"),
        (lambda t: t.update({f"more{k}": torch.ones(1) for k in range(7)}), "and 2 more;"),
        (
            lambda t: t.update({EMBEDDING: torch.ones(25, 16)}),
            f"{EMBEDDING} is left out, it has 25 rows, the base's 24; add it with --rank",
        ),
        (
            lambda t: t.update({EMBEDDING: torch.ones(24, 17)}),
            f"has other shapes: {EMBEDDING} (24, 17), not (24, 16);",
        ),
        (lambda t: t.update({UP: t[UP].flatten()}), "has other shapes"),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), f"{UP} is torch.int8"),
        (lambda t: t.update({UP: t[UP].double()}), f"{UP} is torch.float64"),
    ],
)
def test_other_weights_than_the_bases_are_refused_by_name(
    tmp_path: Path, base: Checkpoint, edit: Edit, says: str
) -> None:
    vector = TaskVector(base, edited(base, tmp_path / "tuned", edit))
    with pytest.raises(ExpertError) as error:
        _ = vector.shapes
    assert says in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_weight(
    tmp_path: Path, base: Checkpoint, value: float
) -> None:
    vector = TaskVector(base, edited(base, tmp_path / "tuned", lambda t: t[UP][5, 7].fill_(value)))
    with pytest.raises(ExpertError, match=UP):
        vector.delta(UP)


def tied_twice(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def trained(tensors: dict[str, Tensor]) -> None:
    tensors[EMBEDDING][2].add_(1)


def test_a_tied_head_may_be_left_out_of_the_base(tmp_path: Path) -> None:
    base = save_model(make_model(tied=True), tmp_path / "base")
    assert HEAD not in base.shapes
    tuned = edited(edited(base, tmp_path / "trained", trained), tmp_path / "tuned", tied_twice)
    assert set(TaskVector(base, tuned).shapes) == {EMBEDDING}


def test_a_tied_head_may_be_left_out_of_the_fine_tune(tmp_path: Path) -> None:
    tuned = edited(
        save_model(make_model(tied=True), tmp_path / "model"), tmp_path / "tuned", trained
    )
    base = edited(Checkpoint.open(tmp_path / "model"), tmp_path / "base", tied_twice)
    vector = TaskVector(base, tuned)
    assert set(vector.shapes) == {EMBEDDING, HEAD}
    assert vector.delta(HEAD).equal(vector.delta(EMBEDDING))
    assert vector.nbytes == 2 * 24 * 16 * 4


def test_a_head_that_is_not_tied_is_not_left_out(tmp_path: Path, base: Checkpoint) -> None:
    without = edited(base, tmp_path / "without", lambda t: t.pop(HEAD))
    rounded = edited(
        base, tmp_path / "rounded", lambda t: t.update({HEAD: t[EMBEDDING].bfloat16()})
    )
    cases = (
        ((base, without), "the fine-tune has none"),
        ((without, base), "the base has none"),
        ((rounded, without), "the fine-tune has none"),
        ((without, rounded), "the base has none"),
    )
    for pair, says in cases:
        with pytest.raises(ExpertError, match=f"{HEAD} is left out, {says}"):
            _ = TaskVector(*pair).shapes
        assert TaskVector(*pair, partial=True).left_out == {HEAD: says}


def resize(tensors: dict[str, Tensor]) -> None:
    for weight in (HEAD, EMBEDDING):
        tensors[weight] = torch.cat([tensors[weight], torch.ones(2, 16)])


@pytest.mark.parametrize(
    ("edit", "left_out"),
    [
        (resize, {HEAD, EMBEDDING}),
        (
            lambda t: t.update({"v_head.summary.weight": torch.ones(1, 16)}),
            {"v_head.summary.weight"},
        ),
        (lambda t: t.pop(HEAD), {HEAD}),
    ],
)
def test_what_has_no_counterpart_is_left_out_and_said_where_that_may_be(
    tmp_path: Path,
    base: Checkpoint,
    edit: Edit,
    left_out: set[str],
) -> None:
    trained_too = edited(base, tmp_path / "trained", lambda t: t[UP].add_(1))
    vector = TaskVector(base, edited(trained_too, tmp_path / "tuned", edit), partial=True)
    assert set(vector.shapes) == {UP}
    assert set(vector.left_out) == left_out
    assert len(vector.notes) == len(left_out)


def add_buffers(tensors: dict[str, Tensor]) -> None:
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.cos_cached"] = torch.ones(2, 2)


@pytest.mark.parametrize("of_base", [True, False])
def test_buffers_are_no_weights_whichever_of_the_two_has_them(
    tmp_path: Path, base: Checkpoint, *, of_base: bool
) -> None:
    tuned = edited(base, tmp_path / "tuned", lambda t: t[UP].add_(1))
    if of_base:
        base = edited(base, tmp_path / "buffered", add_buffers)
    else:
        tuned = edited(tuned, tmp_path / "buffered", add_buffers)
    assert set(TaskVector(base, tuned).shapes) == {UP}


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."]
)
def test_names_that_wrappers_of_training_left_are_the_bases(
    tmp_path: Path, base: Checkpoint, wrapper: str
) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        for weight in list(tensors):
            tensors[wrapper + weight] = tensors.pop(weight)
        tensors[wrapper + UP].add_(1)

    vector = TaskVector(base, edited(base, tmp_path / "tuned", wrap))
    assert set(vector.shapes) == {UP}
    assert vector.delta(UP).allclose(torch.ones(24, 16))


@pytest.mark.parametrize("partial", [True, False])
def test_a_text_model_is_the_one_within_a_base_that_sees(
    tmp_path: Path, base: Checkpoint, *, partial: bool
) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        for weight in list(tensors):
            tensors["language_model." + weight] = tensors.pop(weight)
        tensors["vision_tower.encoder.layers.0.fc1.weight"] = torch.ones(4, 4)

    seeing = edited(base, tmp_path / "seeing", wrap)
    tuned = edited(base, tmp_path / "tuned", lambda t: t[UP].add_(1))
    vector = TaskVector(seeing, tuned, partial)
    if partial:
        assert set(vector.shapes) == {f"language_model.{UP}"}
    else:
        with pytest.raises(ExpertError, match=r"vision_tower.*left out"):
            _ = vector.shapes


def test_a_fine_tune_of_a_quantised_base_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    packed = edited(base, tmp_path / "packed", lambda t: t.update({UP: t[UP].to(torch.uint8)}))
    with pytest.raises(ExpertError, match=r"is quantised .* a library of the base in 16 bits"):
        _ = TaskVector(packed, base).shapes
