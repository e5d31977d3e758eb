"""The forms that deltas have on disk, in the files weights-00001.safetensors and on.

low_rank    of each weight that slots serve `<module>.a` [rank, in] and `<module>.b` [out, rank],
            float32
one_bit     of each matrix `<weight>.sign` [.., in / 8], eight to a byte, `<weight>.scale` [] and
            `<weight>.shape`; of a vector `<weight>`, float32
dense       `<weight>`, in the dtype that was asked for
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from adapters.coefficient import kind_of, layer_of
from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files.facts import DeltaReport, PartChoice, PartReport
from adapters.files.safetensors_reader import TensorFile, confine, index_tensors
from adapters.files.safetensors_writer import save
from adapters.files.servable import EMBEDDING, HEAD, NAMES_ALONE, ServableWeights
from adapters.low_rank import compress, energy_of

_FLUSH = 64 << 20
_BLOCK = 1 << 20


class PackedSigns(NamedTuple):
    """A matrix s sign(delta), eight signs to a byte."""

    bits: Tensor
    """[.., out, in / 8], uint8; of the first input the highest bit, 1 for +."""
    scale: float
    """s."""
    inputs: int
    """in."""

    def unpack(self) -> Tensor:
        """Return which signs are +, [.., out, in], bool."""
        bits = np.unpackbits(self.bits.numpy(), axis=-1, count=self.inputs)
        return torch.from_numpy(bits).bool()


class EncodedWeight(NamedTuple):
    """The delta of one weight in a form."""

    kept: float
    """The share of the energy that the tensors hold."""
    tensors: dict[str, Tensor]
    """What to write, by name."""


@dataclass(frozen=True)
class LowRankForm:
    """Factors of each weight that slots can serve.

    Other weights are dropped. With neither rank nor energy the factors are those that the deltas
    are known by, bit for bit.
    """

    name: ClassVar[str] = "low_rank"
    rank: int | None = None
    """That of `adapters.low_rank.compress`."""
    energy: float | None = None
    """That of `adapters.low_rank.compress`."""

    def explain_drop(
        self, weight: str, shape: tuple[int, ...], servable: ServableWeights
    ) -> str | None:
        """Return why the form drops a weight; None if it holds it."""
        return servable.explain_refusal(weight, shape)

    def encode(self, weight: str, change: LowRank | Tensor, _: float) -> EncodedWeight:
        """Return the delta of one weight as factors.

        Raises ExpertError for a weight that is not known by factors, without rank and energy.
        """
        kept = 1.0
        if self.rank is not None or self.energy is not None:
            change, kept = compress(change, rank=self.rank, energy=self.energy)
        if isinstance(change, Tensor):
            raise ExpertError(
                f"{weight} is not known by low-rank factors; ask for a rank or an energy, or for"
                " another form"
            )
        module = weight.removesuffix(".weight")
        return EncodedWeight(
            kept, {f"{module}.a": change.a.float(), f"{module}.b": change.b.float()}
        )


@dataclass(frozen=True)
class OneBitForm:
    """BitDelta (arXiv 2402.10193): every matrix as s sign(delta), sign(0) = 1, s = mean |delta|.

    Of n entries this s has the least error ||delta - s sign(delta)||^2 = ||delta||^2
    - 2 s ||delta||_1 + n s^2. Vectors are small and stay whole.

    1bit-Merging (arXiv 2502.10743) finds what chat models learn mostly in attention, what models
    of mathematics and code do in MLPs, and compresses by that choice. Here the matrices of one of
    the two can be kept alone, and all vectors; that the paper drops the other, as this does, could
    not be verified: its code is not public.
    """

    name: ClassVar[str] = "one_bit"
    parts: PartChoice = "all"
    """The matrices that are kept: all, or those of the decoder's attentions or MLPs alone."""

    def explain_drop(self, weight: str, shape: tuple[int, ...], _: ServableWeights) -> str | None:
        """Return why the form drops a weight; None if it holds it."""
        part = part_of(weight, shape)
        if self.parts == "all" or part in ("vectors", self.parts):
            return None
        return f"matrices of {self.parts} alone are kept"

    def encode(self, weight: str, change: LowRank | Tensor, energy: float) -> EncodedWeight:
        """Return the delta of one weight as signs and a scale.

        Args:
            weight: The weight's name.
            change: Its delta.
            energy: The delta's energy, above 0.
        """
        delta = _dense(change)
        if delta.ndim < 2:
            return EncodedWeight(1.0, {weight: delta})
        total = sum(
            part.abs().sum(dtype=torch.float64).item() for part in delta.view(-1).split(_BLOCK)
        )
        scale = torch.tensor(total / delta.numel(), dtype=torch.float32)
        kept = scale.item() * (2 * total - delta.numel() * scale.item()) / energy
        sign = torch.from_numpy(np.packbits(delta.numpy() >= 0, axis=-1))
        parts = {"sign": sign, "scale": scale, "shape": torch.tensor(delta.shape)}
        return EncodedWeight(kept, {f"{weight}.{part}": tensor for part, tensor in parts.items()})


@dataclass(frozen=True)
class DenseForm:
    """The deltas as they are, rounded to a dtype."""

    name: ClassVar[str] = "dense"
    dtype: torch.dtype = torch.float32

    def explain_drop(self, *_: object) -> None:
        """Return None: the form holds every weight."""

    def encode(self, weight: str, change: LowRank | Tensor, energy: float) -> EncodedWeight:
        """Return the delta of one weight; raise ExpertError for a value too large for the dtype."""
        delta = _dense(change)
        if self.dtype == delta.dtype:
            return EncodedWeight(1.0, {weight: delta})
        rounded = delta.to(self.dtype)
        lost = energy_of(delta.sub_(rounded))
        if not math.isfinite(lost):
            raise ExpertError(
                f"{weight} has values too large for {self.dtype}; ask for bfloat16 or float32"
            )
        return EncodedWeight(1 - lost / energy, {weight: rounded})


Form = LowRankForm | OneBitForm | DenseForm


def write(
    deltas: Deltas, folder: Path, form: Form, servable: ServableWeights = NAMES_ALONE
) -> DeltaReport:
    """Write deltas into a folder that has no weights yet, one weight at a time.

    A file is begun anew at 64 MB. Weights whose delta is zero are left out.

    Args:
        deltas: What to write.
        folder: Where to.
        form: How. Factors are kept of the servable weights alone.
        servable: Which these are.

    Raises ExpertError for NaN or infinite deltas, if the form holds none of the weights that
    change, and as `deltas` and the form's `encode` do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder)
    before = 0
    dropped: dict[str, float] = {}
    reasons: list[str] = []
    ranks: dict[str, int] = {}
    unserved: dict[str, str] = {}
    by_type, by_part = _Shares(), _Shares()
    for weight, shape in sorted(deltas.shapes.items()):
        refused = form.explain_drop(weight, shape, servable)
        energy, size, encoded = _encode(deltas, weight, None if refused else form)
        before += size
        if not energy:
            continue

        by_type.add(type_of(weight), energy, encoded.kept)
        by_part.add(part_of(weight, shape), energy, encoded.kept)
        for name, tensor in encoded.tensors.items():
            writer.add(name, tensor)
        if refused:
            dropped[weight] = energy
            reasons.append(f"{weight}: {refused}")
        elif isinstance(form, LowRankForm):
            module = weight.removesuffix(".weight")
            ranks[module] = len(encoded.tensors[f"{module}.a"])
        elif isinstance(form, OneBitForm) and (
            reason := servable.explain_unserved_delta(weight, shape)
        ):
            unserved[weight] = reason
        del encoded  # Not held while the next weight is read.

    writer.flush()
    if not writer.bytes:
        what = f"the form holds none of the weights that change ({'; '.join(reasons[:3])})"
        raise ExpertError(f"nothing to write: {what if dropped else 'no weight changes'}")

    before = getattr(deltas, "nbytes", before)
    kept, parts = by_type.kept(), by_part.report()
    return DeltaReport(form.name, kept, dropped, ranks, before, writer.bytes, parts, unserved)


def type_of(weight: str) -> str:
    """Return the type of a weight's module, such as q_proj.

    It is the last part of the module's name, `norm` for every norm and `bias` for every bias.
    """
    module, _, leaf = weight.rpartition(".")
    kind = module.rpartition(".")[2] if leaf == "weight" else leaf
    return "norm" if "norm" in kind else kind


def part_of(weight: str, shape: Sequence[int]) -> str:
    """Return the part of a model that a weight is of.

    These are the matrices of the decoder's `attention` and `mlp`, those of its `ends`, which are
    the token embedding and the output head, all `vectors`, which are norms and biases, and
    `others`.
    """
    if len(shape) < 2:
        return "vectors"
    if layer_of(weight) is not None:
        return kind_of(weight.removesuffix(".weight"))
    return "ends" if weight.endswith((EMBEDDING, HEAD)) else "others"


class _Shares:
    """Sums up energies, and what is kept of them, by kind."""

    def __init__(self) -> None:
        self._total, self._kept = defaultdict[str, float](float), defaultdict[str, float](float)

    def add(self, kind: str, energy: float, kept: float) -> None:
        self._total[kind] += energy
        self._kept[kind] += energy * kept

    def kept(self) -> dict[str, float]:
        return {kind: self._kept[kind] / energy for kind, energy in sorted(self._total.items())}

    def report(self) -> dict[str, PartReport]:
        whole = sum(self._total.values())
        return {
            kind: PartReport(self._total[kind] / whole, kept) for kind, kept in self.kept().items()
        }


@dataclass(frozen=True)
class StoredFactors:
    """The deltas of a folder in the low_rank form."""

    files: Mapping[str, TensorFile]
    """The file of each tensor."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        rows = {
            name.removesuffix(".a"): self._shape(name) for name in self.files if name.endswith(".a")
        }
        return {
            f"{module}.weight": (self._shape(f"{module}.b")[0], shape[1])
            for module, shape in rows.items()
        }

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight, dense, float32."""
        return self.factors(weight).dense()

    def factors(self, weight: str) -> LowRank:
        """Return the factors of one weight as they were written."""
        module = weight.removesuffix(".weight")
        a, b = f"{module}.a", f"{module}.b"
        return LowRank(self.files[a].read(a), self.files[b].read(b))

    def expert(self, name: str) -> Expert:
        """Return all of it as an expert; raise ExpertError if a factor is no sound one."""
        return Expert(
            name, {weight.removesuffix(".weight"): self.factors(weight) for weight in self.shapes}
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].tensors[name].shape


@dataclass(frozen=True)
class StoredDeltas:
    """The deltas of a folder in the one_bit or the dense form."""

    files: Mapping[str, TensorFile]
    """The file of each tensor."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        packed = [name.removesuffix(".sign") for name in self.files if name.endswith(".sign")]
        parts = {f"{weight}.{part}" for weight in packed for part in ("sign", "scale", "shape")}
        whole = {name: self.files[name].tensors[name].shape for name in self.files.keys() - parts}
        packed_shapes = {weight: tuple(self._read(f"{weight}.shape").tolist()) for weight in packed}
        return dict(sorted((whole | packed_shapes).items()))

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight, dense, float32."""
        if weight in self.files:
            return self._read(weight).float()
        signs = self.signs(weight)
        return signs.unpack().float().mul_(2).sub_(1).mul_(signs.scale)

    def signs(self, weight: str) -> PackedSigns:
        """Return the change of a matrix in the one_bit form as it was written."""
        scale = self._read(f"{weight}.scale").item()
        return PackedSigns(self._read(f"{weight}.sign"), scale, self.shapes[weight][-1])

    def dtype_of(self, weight: str) -> torch.dtype:
        """Return the dtype that holds the change of a weight as it is in the files."""
        found = self.files[weight].tensors[weight].dtype if weight in self.files else torch.float32
        assert isinstance(found, torch.dtype), "`write` wrote it"
        return found

    def factors(self, weight: str) -> None:
        """Return None: such a change is not known by factors."""

    def _read(self, name: str) -> Tensor:
        return self.files[name].read(name)


@overload
def read(folder: Path, form: Literal["low_rank"]) -> StoredFactors: ...
@overload
def read(folder: Path, form: str) -> Deltas: ...
def read(folder: Path, form: str) -> Deltas:
    """Return the deltas that `write` wrote in a form.

    Raises ExpertError if the files are damaged or not of the form.
    """
    files = index_tensors(
        TensorFile.open(confine(folder, path.name))
        for path in sorted(folder.glob("weights-*.safetensors"))
    )
    if not files:
        raise ExpertError(f"{folder} holds no weights-*.safetensors")
    if form != LowRankForm.name:
        return StoredDeltas(files)
    if {name[:-2] + side for name in files for side in (".a", ".b")} != files.keys():
        raise ExpertError(f"{folder} does not hold just factors a and b of modules")
    return StoredFactors(files)


class _Writer:
    """Collects tensors, and writes a file whenever they would be over 64 MB.

    The tensors are copied into one buffer: small ones, each where it was made, would keep freed
    memory from being used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = torch.empty(_FLUSH, dtype=torch.uint8)
        self._used = 0
        self._pending: dict[str, Tensor] = {}
        self._count = self.bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        start = -(-self._used // 8) * 8
        if start + tensor.nbytes > len(self._buffer):
            self.flush()
            start = 0
        if tensor.nbytes > len(self._buffer):
            self._pending[name] = tensor.contiguous()
            self.flush()
            return
        self._used = start + tensor.nbytes
        self._pending[name] = (
            self._buffer[start : self._used].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        )

    def flush(self) -> None:
        if self._pending:
            self._count += 1
            path = self._folder / f"weights-{self._count:05}.safetensors"
            assert not path.exists()
            save(self._pending, path)
            self.bytes += path.stat().st_size
            self._pending = {}
            self._used = 0


def _encode(deltas: Deltas, weight: str, form: Form | None) -> tuple[float, int, EncodedWeight]:
    """Return the energy of a weight's delta, the bytes it was known by, and what to write.

    Of no form, that is nothing.
    """
    factor = deltas.factors(weight)
    change = deltas.delta(weight) if factor is None else factor
    size = change.nbytes if isinstance(change, Tensor) else change.a.nbytes + change.b.nbytes
    energy = energy_of(change)
    if not math.isfinite(energy):
        raise ExpertError(f"the change of {weight} is NaN or infinite")
    if not energy or form is None:
        return energy, size, EncodedWeight(0.0, {})
    return energy, size, form.encode(weight, change, energy)


def _dense(change: LowRank | Tensor) -> Tensor:
    return change.contiguous() if isinstance(change, Tensor) else change.dense()
