"""The forms on disk: what they keep is what they say, and what is read is what was written."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files import delta_forms
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import (
    DenseForm,
    Form,
    LowRankForm,
    OneBitForm,
    read,
    type_of,
    write,
)
from adapters.files.facts import PartChoice
from adapters.files.finetune import TaskVector
from adapters.low_rank import make_canonical
from tests.factories.checkpoints import make_model, save_model

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
NORM, HEAD = "model.layers.0.input_layernorm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Given:
    """Deltas held in memory."""

    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {weight: tuple(tensor.shape) for weight, tensor in self.tensors.items()}

    def delta(self, weight: str) -> Tensor:
        return self.tensors[weight].clone()

    def factors(self, weight: str) -> None:
        return None


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(**more: Tensor) -> Given:
    return Given(
        {
            Q: random(16, 16),
            UP: random(24, 16, seed=1),
            NORM: random(16, seed=2),
            HEAD: random(9, 16, seed=3),
            **more,
        }
    )


def expert() -> Expert:
    return Expert(
        "e", {"model.layers.0.mlp.up_proj": LowRank(random(3, 16), random(24, 3, seed=1))}
    )


def share(kept: Tensor, delta: Tensor) -> float:
    """1 - ||delta - kept||^2 / ||delta||^2, float64."""
    return (
        1 - (delta.double() - kept.double()).square().sum() / delta.double().square().sum()
    ).item()


@pytest.fixture
def tuned(tmp_path: Path) -> TaskVector:
    return TaskVector(
        save_model(make_model(0, torch.bfloat16), tmp_path / "b"),
        save_model(make_model(1, torch.bfloat16), tmp_path / "t"),
    )


def test_low_rank_keeps_the_best_factors_of_every_linear_weight(
    tmp_path: Path, tuned: TaskVector
) -> None:
    report = write(tuned, tmp_path / "out", LowRankForm(rank=5))
    stored = read(tmp_path / "out", "low_rank")
    linear = {weight for weight in tuned.shapes if ".layers." in weight}
    assert set(stored.shapes) == linear
    assert report.ranks == {weight.removesuffix(".weight"): 5 for weight in linear}
    for weight in linear:
        u, s, vt = torch.linalg.svd(tuned.delta(weight).double())
        want = (u[:, :5] * s[:5]) @ vt[:5]
        torch.testing.assert_close(
            stored.delta(weight).double(), want, rtol=0, atol=1e-6 * s[0].item()
        )
        assert stored.shapes[weight] == tuned.shapes[weight]
    ups = [weight for weight in linear if "up_proj" in weight]
    whole, kept = (torch.cat([d.delta(w).flatten() for w in ups]) for d in (tuned, stored))
    assert report.kept["up_proj"] == pytest.approx(share(kept, whole), rel=1e-5)
    outside = {HEAD, "model.embed_tokens.weight"}
    assert report.dropped == {
        w: pytest.approx(tuned.delta(w).square().sum().item()) for w in outside
    }
    assert report.kept["lm_head"] == report.kept["embed_tokens"] == 0
    assert report.bytes_before == sum(2 * tuned.delta(weight).numel() for weight in tuned.shapes)
    assert report.bytes_after == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_energy_gives_each_module_its_own_rank(tmp_path: Path) -> None:
    spread = {4: torch.tensor([3.0, 3, 3, 3]), 1: torch.tensor([9.0, 0.1, 0.1, 0.1])}
    deltas = Given(
        {
            f"model.layers.{rank}.up_proj.weight": torch.eye(8, 4) * values
            for rank, values in spread.items()
        }
    )
    report = write(deltas, tmp_path, LowRankForm(energy=0.95))
    assert report.ranks == {f"model.layers.{rank}.up_proj": rank for rank in spread}


def test_known_factors_are_kept_bit_for_bit(tmp_path: Path) -> None:
    report = write(LowRankDeltas(expert()), tmp_path, LowRankForm())
    stored = read(tmp_path, "low_rank").expert("e")
    assert stored.digest == expert().digest
    assert report.kept == {"up_proj": 1.0}
    assert report.bytes_before == (3 * 16 + 24 * 3) * 4


def test_known_factors_are_compressed_without_the_dense_delta(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Factors(LowRankDeltas):
        def delta(self, weight: str) -> Tensor:
            raise AssertionError(weight)

    write(Factors(expert()), tmp_path, LowRankForm(rank=2))
    a, b = read(tmp_path, "low_rank").expert("e").factors["model.layers.0.mlp.up_proj"]
    whole = make_canonical(expert().factors["model.layers.0.mlp.up_proj"])
    assert a.equal(whole.a[:2])
    assert b.equal(whole.b[:, :2])


def test_factors_that_share_memory_are_written(tmp_path: Path) -> None:
    square = random(4, 4)
    shared = Expert("e", {f"layers.{k}.up": LowRank(square, square.t()) for k in range(2)})
    write(LowRankDeltas(shared), tmp_path, LowRankForm())
    assert read(tmp_path, "low_rank").expert("e").digest == shared.digest


def test_a_dense_delta_needs_a_rank_or_an_energy(tmp_path: Path) -> None:
    with pytest.raises(
        ExpertError, match=r"q_proj\.weight is not known by low-rank factors; ask for a rank"
    ):
        write(given(), tmp_path, LowRankForm())


def test_what_slots_cannot_hold_is_reported(tmp_path: Path) -> None:
    others = {
        "model.layers.0.conv.weight": random(2, 3, 4),
        "model.layers.0.up.bias": random(4),
        "layers.weight": random(3, 3),
    }
    report = write(given(**others), tmp_path, LowRankForm(rank=100))
    assert report.dropped.keys() == {NORM, HEAD, *others}
    assert report.kept == pytest.approx(
        {"q_proj": 1, "up_proj": 1, "norm": 0, "lm_head": 0, "conv": 0, "bias": 0, "layers": 0},
        abs=1e-9,
    )


@pytest.mark.parametrize("columns", [8, 13])
def test_one_bit_is_a_sign_and_the_best_scale(tmp_path: Path, columns: int) -> None:
    delta = random(6, columns)
    delta[0, 0] = 0
    deltas = Given(
        {UP: delta, NORM: random(5), "model.layers.0.mlp.experts": random(2, 3, columns)}
    )
    report = write(deltas, tmp_path, OneBitForm())
    stored = read(tmp_path, "one_bit")
    assert stored.shapes == deltas.shapes
    kept = stored.delta(UP)
    scale = delta.abs().mean()
    torch.testing.assert_close(kept, torch.where(delta < 0, -scale, scale))
    assert all(share(kept, delta) > share(kept * other, delta) for other in (0.99, 1.01))
    assert report.kept["up_proj"] == pytest.approx(share(kept, delta), rel=1e-6)
    assert report.kept["norm"] == 1
    assert stored.delta(NORM).equal(random(5))
    cube = deltas.tensors["model.layers.0.mlp.experts"]
    torch.testing.assert_close(
        stored.delta("model.layers.0.mlp.experts"), cube.sign() * cube.abs().mean()
    )


@pytest.mark.parametrize(("parts", "kept", "gone"), [("attention", Q, UP), ("mlp", UP, Q)])
def test_one_bit_can_keep_one_part_and_says_what_each_part_has(
    tmp_path: Path, parts: PartChoice, kept: str, gone: str
) -> None:
    deltas = given(**{"model.embed_tokens.weight": random(9, 16, seed=4)})
    report = write(deltas, tmp_path, OneBitForm(parts))
    assert read(tmp_path, "one_bit").shapes.keys() == {kept, NORM}
    ends = {HEAD, "model.embed_tokens.weight"}
    assert report.dropped == {
        w: pytest.approx(deltas.delta(w).square().sum().item()) for w in {gone, *ends}
    }

    whole = sum(deltas.delta(w).square().sum().item() for w in deltas.shapes)
    energies = {"attention": [Q], "mlp": [UP], "vectors": [NORM], "ends": [*ends]}
    assert {part: found.energy for part, found in report.parts.items()} == {
        part: pytest.approx(sum(deltas.delta(w).square().sum().item() for w in weights) / whole)
        for part, weights in energies.items()
    }
    stored = read(tmp_path, "one_bit").delta(kept)
    shares = dict.fromkeys(energies, 0.0) | {
        parts: share(stored, deltas.delta(kept)),
        "vectors": 1.0,
    }
    assert {part: found.kept for part, found in report.parts.items()} == pytest.approx(shares)


def test_one_bit_says_what_slots_leave_out(tmp_path: Path) -> None:
    others = {
        "model.layers.0.mlp.experts.0.up_proj.weight": random(4, 16),
        "model.layers.0.self_attn.q_proj.bias": random(16),
        "model.layers.0.self_attn.sinks": random(4),
        "model.norm.weight": random(16),
    }
    report = write(given(**others), tmp_path, OneBitForm())
    assert {w: reason.split()[-1] for w, reason in report.unserved.items()} == {
        HEAD: "weight",  # which the base may have twice
        "model.layers.0.mlp.experts.0.up_proj.weight": "experts",
        "model.layers.0.self_attn.sinks": "bias",
    }
    assert not write(given(**others), tmp_path / "dense", DenseForm()).unserved


def test_one_bit_takes_a_bit_for_each_entry(tmp_path: Path) -> None:
    report = write(Given({UP: random(512, 512)}), tmp_path, OneBitForm())
    assert 512 * 512 // 8 < report.bytes_after < 512 * 512 // 8 + 500
    assert report.bytes_before == 4 * 512 * 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dense_is_the_delta_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    report = write(given(), tmp_path, DenseForm(dtype))
    stored = read(tmp_path, "dense")
    assert stored.shapes == given().shapes
    for weight, delta in given().tensors.items():
        kept = stored.delta(weight)
        assert kept.dtype == torch.float32
        assert kept.equal(delta.to(dtype).float())
        assert report.kept[type_of(weight)] == pytest.approx(share(kept, delta), rel=1e-12)
    assert (min(report.kept.values()) < 1) == (dtype != torch.float32)


def test_a_value_too_large_for_its_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExpertError, match=r"up_proj\.weight has values too large for torch\.float16"
    ):
        write(Given({UP: torch.full((2, 2), 1e5)}), tmp_path, DenseForm(torch.float16))


ALL = [
    LowRankForm(rank=2),
    LowRankForm(energy=0.9),
    OneBitForm(),
    DenseForm(),
    DenseForm(torch.bfloat16),
]


@pytest.mark.parametrize("form", ALL, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_weight(
    tmp_path: Path, form: Form, value: float
) -> None:
    with pytest.raises(ExpertError, match=r"up_proj\.weight is NaN or infinite"):
        write(given(**{UP: random(24, 16).index_fill(0, torch.tensor([3]), value)}), tmp_path, form)


@pytest.mark.parametrize("form", ALL, ids=str)
def test_weights_that_do_not_change_are_left_out(tmp_path: Path, form: Form) -> None:
    report = write(given(**{UP: torch.zeros(24, 16)}), tmp_path, form)
    assert UP not in read(tmp_path, form.name).shapes
    assert UP not in report.dropped
    assert "up_proj" not in report.kept


def test_an_expert_of_nothing_is_refused(tmp_path: Path, tuned: TaskVector) -> None:
    with pytest.raises(ExpertError, match="no weight changes"):
        write(TaskVector(tuned.base, tuned.base), tmp_path / "a", DenseForm())
    with pytest.raises(
        ExpertError, match=r"the form holds none of the weights that change .*no linear layer"
    ):
        write(Given({NORM: random(3)}), tmp_path / "b", LowRankForm(rank=1))


@pytest.mark.parametrize("form", ALL, ids=str)
def test_writing_what_was_read_changes_nothing(tmp_path: Path, form: Form) -> None:
    write(given(), tmp_path / "1", form)
    again = LowRankForm() if isinstance(form, LowRankForm) else form
    write(read(tmp_path / "1", form.name), tmp_path / "2", again)
    first, second = (
        (tmp_path / folder / "weights-00001.safetensors").read_bytes() for folder in "12"
    )
    assert first == second


@pytest.mark.parametrize("form", ALL, ids=str)
def test_many_files_hold_what_one_does(
    tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(given(), tmp_path / "one", form)
    monkeypatch.setattr(delta_forms, "_FLUSH", 200)
    report = write(given(), tmp_path / "many", form)
    files = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert files == [f"weights-{k:05}.safetensors" for k in range(1, len(files) + 1)]
    assert len(files) > 1
    assert report.bytes_after == sum((tmp_path / "many" / file).stat().st_size for file in files)
    one, many = (read(tmp_path / name, form.name) for name in ("one", "many"))
    assert one.shapes == many.shapes
    assert all(one.delta(weight).equal(many.delta(weight)) for weight in one.shapes)


def test_a_folder_of_another_form_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="holds no weights"):
        read(tmp_path, "dense")
    write(given(), tmp_path, DenseForm())
    with pytest.raises(ExpertError, match="does not hold just factors"):
        read(tmp_path, "low_rank")


def test_a_report_is_plain_json(tmp_path: Path) -> None:
    report = write(given(), tmp_path, LowRankForm(rank=2))
    assert json.loads(json.dumps(asdict(report))) == asdict(report)


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (Q, "q_proj"),
        (NORM, "norm"),
        ("model.norm.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.self_attn.q_proj.bias", "bias"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.layers.0.mlp.experts.3.w1.weight", "w1"),
        ("model.layers.0.mlp.experts.gate_up_proj", "gate_up_proj"),
    ],
)
def test_types_of_weights(weight: str, kind: str) -> None:
    assert type_of(weight) == kind


INGEST = """
import sys
from pathlib import Path
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, LowRankForm, OneBitForm, write
from adapters.files.finetune import TaskVector

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

def ingest(folder):
    base, tuned = (Checkpoint.open(folder / name) for name in ("base", "tuned"))
    write(TaskVector(base, tuned), folder / form.name, form)

small, large = map(Path, sys.argv[1:3])
form = {"low_rank": LowRankForm(rank=4), "one_bit": OneBitForm(), "dense": DenseForm()}[sys.argv[3]]
ingest(small)  # Loads the code, whose pages count too.
start = peak()
ingest(large)
print(peak() - start)
"""


def save_pair(folder: Path, columns: int) -> Path:
    """A base and a fine-tune of two shards, each of ten weights of 256 rows."""
    values = random(256, columns).bfloat16()
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        for shard in (1, 2):
            layers = {
                f"model.layers.{10 * shard + k}.up_proj.weight": values.clone() for k in range(10)
            }
            save_file(layers, folder / name / f"model-{shard:05}-of-00002.safetensors")
        values.mul_(1.5)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["low_rank", "one_bit", "dense"])
def test_an_ingest_holds_less_than_two_shards(
    tmp_path_factory: pytest.TempPathFactory, form: str
) -> None:
    small = save_pair(tmp_path_factory.mktemp("small"), 512)
    large = save_pair(tmp_path_factory.mktemp("large"), 20480)  # Shards of 100 MB.
    command = [sys.executable, "-c", INGEST, str(small), str(large), form]

    # The C library gives freed memory back at once only above a size, at most 32 MB, that it sets
    # as it goes. Weights of real models are above it, these are so by this.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    assert len(read(large / form, form).shapes) == 20
    assert int(run.stdout) < 2 * max(Checkpoint.open(large / "base").shards.values())
