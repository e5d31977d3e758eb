"""The forms that deltas have on disk, in the files weights-00001.safetensors and on.

low_rank  the linear weights of decoder layers: `<module>.a` [rank, in] and `<module>.b` [out, rank], float32
one_bit   `<weight>.sign` [.., in / 8], eight to a byte, `<weight>.scale` [], `<weight>.shape`; vectors as `<weight>`, float32
dense     `<weight>`, in the dtype that was asked for
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from adapters.canonical import compress, energy_of
from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files import TensorFile, by_name, confined
from adapters.writing import save

_FLUSH, _BLOCK = 64 << 20, 1 << 20
_LINEAR = re.compile(r"(.+\.)?layers\.\d+\..+\.weight")


class Encoded(NamedTuple):
    """One weight's delta in a form; no tensors where the form cannot hold it. kept: the share of the energy that they hold"""

    kept: float
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class LowRankForm:
    """Factors of each linear weight of the decoder layers, which slots can serve; other weights are dropped.

    rank, energy: as of `adapters.canonical.compress`. Neither: the factors that the deltas are known by, bit for bit.
    """

    name: ClassVar[str] = "low_rank"
    rank: int | None = None
    energy: float | None = None

    def encode(self, weight: str, change: LowRank | Tensor, _: float) -> Encoded:
        """Raises ExpertError for a weight that is not known by factors if neither rank nor energy is given."""
        if not _LINEAR.fullmatch(weight) or (isinstance(change, Tensor) and change.ndim != 2):
            return Encoded(0.0, {})
        kept = 1.0
        if self.rank is not None or self.energy is not None:
            change, kept = compress(change, rank=self.rank, energy=self.energy)
        if isinstance(change, Tensor):
            raise ExpertError(f"{weight} is not known by low-rank factors; ask for a rank or an energy, or for another form")
        module = weight.removesuffix(".weight")
        return Encoded(kept, {f"{module}.a": change.a.float(), f"{module}.b": change.b.float()})


@dataclass(frozen=True)
class OneBitForm:
    """BitDelta (arXiv 2402.10193): s sign(delta) of every matrix, sign(0) = 1, and s = mean |delta|.

    This s has the least error ||delta - s sign(delta)||^2 = ||delta||^2 - 2 s ||delta||_1 + n s^2, n entries. Vectors are
    small and stay whole.
    """

    name: ClassVar[str] = "one_bit"

    def encode(self, weight: str, change: LowRank | Tensor, energy: float) -> Encoded:
        """energy: that of the change, above 0."""
        delta = _dense(change)
        if delta.ndim < 2:
            return Encoded(1.0, {weight: delta})
        total = sum(part.abs().sum(dtype=torch.float64).item() for part in delta.view(-1).split(_BLOCK))
        scale = torch.tensor(total / delta.numel(), dtype=torch.float32)
        kept = scale.item() * (2 * total - delta.numel() * scale.item()) / energy
        sign = torch.from_numpy(np.packbits(delta.numpy() >= 0, axis=-1))
        parts = {"sign": sign, "scale": scale, "shape": torch.tensor(delta.shape)}
        return Encoded(kept, {f"{weight}.{part}": tensor for part, tensor in parts.items()})


@dataclass(frozen=True)
class DenseForm:
    """The deltas as they are, rounded to `dtype`."""

    name: ClassVar[str] = "dense"
    dtype: torch.dtype = torch.float32

    def encode(self, weight: str, change: LowRank | Tensor, energy: float) -> Encoded:
        """Raises ExpertError for a value too large for the dtype."""
        delta = _dense(change)
        if self.dtype == delta.dtype:
            return Encoded(1.0, {weight: delta})
        rounded = delta.to(self.dtype)
        lost = energy_of(delta.sub_(rounded))
        if not math.isfinite(lost):
            raise ExpertError(f"{weight} has values too large for {self.dtype}; ask for bfloat16 or float32")
        return Encoded(1 - lost / energy, {weight: rounded})


Form = LowRankForm | OneBitForm | DenseForm


@dataclass(frozen=True)
class Report:
    """What a form kept of the deltas written in it.

    kept: share of the energy, the squared Frobenius norm, by type of module, such as q_proj or norm
    dropped: the energy of each weight that the form cannot hold   ranks: by module, of the low_rank form
    bytes_before: of the touched weights in the fine-tune; of other deltas, of their factors or in float32
    bytes_after: of the files
    """

    form: str
    kept: Mapping[str, float]
    dropped: Mapping[str, float]
    ranks: Mapping[str, int]
    bytes_before: int
    bytes_after: int


def write(deltas: Deltas, folder: Path, form: Form) -> Report:
    """Write deltas into a folder without such files, one weight at a time, the files flushed at 64 MB.

    Weights whose delta is zero are left out. Raises ExpertError for NaN or infinite deltas, if the form holds none of the
    weights that change, and as `deltas` and the form's `encode` do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer, before = _Writer(folder), 0
    dropped: dict[str, float] = {}
    ranks: dict[str, int] = {}
    total, kept = defaultdict[str, float](float), defaultdict[str, float](float)
    for weight in sorted(deltas.shapes):
        energy, size, encoded = _encode(deltas, weight, form)
        before += size
        if not energy:
            continue
        total[type_of(weight)] += energy
        kept[type_of(weight)] += energy * encoded.kept
        for name, tensor in encoded.tensors.items():
            writer.add(name, tensor)
        if not encoded.tensors:
            dropped[weight] = energy
        elif isinstance(form, LowRankForm):
            module = weight.removesuffix(".weight")
            ranks[module] = len(encoded.tensors[f"{module}.a"])
        del encoded  # Not held while the next weight is read.
    writer.flush()
    if not writer.bytes:
        what = f"the form {form.name} can hold none of the weights that change" if dropped else "no weight changes"
        raise ExpertError(f"nothing to write: {what}")
    shares = {kind: kept[kind] / energy for kind, energy in sorted(total.items())}
    before = getattr(deltas, "nbytes", before)
    return Report(form.name, shares, dropped, ranks, before, writer.bytes)


def type_of(weight: str) -> str:
    """The type of a weight's module: the last part of its name, `norm` for every norm, `bias` for every bias."""
    module, _, leaf = weight.rpartition(".")
    kind = module.rpartition(".")[2] if leaf == "weight" else leaf
    return "norm" if "norm" in kind else kind


@dataclass(frozen=True)
class StoredFactors:
    """The deltas of a folder in the low_rank form. files: the file of each tensor"""

    files: Mapping[str, TensorFile]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        rows = {name.removesuffix(".a"): self._shape(name) for name in self.files if name.endswith(".a")}
        return {f"{module}.weight": (self._shape(f"{module}.b")[0], shape[1]) for module, shape in rows.items()}

    def delta(self, weight: str) -> Tensor:
        return self.factors(weight).dense()

    def factors(self, weight: str) -> LowRank:
        module = weight.removesuffix(".weight")
        a, b = f"{module}.a", f"{module}.b"
        return LowRank(self.files[a].read(a), self.files[b].read(b))

    def expert(self, name: str) -> Expert:
        """All of it as an expert. Raises ExpertError if a factor is mis-shaped or not finite."""
        return Expert(name, {weight.removesuffix(".weight"): self.factors(weight) for weight in self.shapes})

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].entries[name].shape


@dataclass(frozen=True)
class StoredDeltas:
    """The deltas of a folder in the one_bit or the dense form. files: the file of each tensor"""

    files: Mapping[str, TensorFile]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        packed = [name.removesuffix(".sign") for name in self.files if name.endswith(".sign")]
        parts = {f"{weight}.{part}" for weight in packed for part in ("sign", "scale", "shape")}
        whole = {name: self.files[name].entries[name].shape for name in self.files.keys() - parts}
        return dict(sorted((whole | {weight: tuple(self._read(f"{weight}.shape").tolist()) for weight in packed}).items()))

    def delta(self, weight: str) -> Tensor:
        if weight in self.files:
            return self._read(weight).float()
        shape = self.shapes[weight]
        bits = np.unpackbits(self._read(f"{weight}.sign").numpy(), axis=-1, count=shape[-1])
        return torch.from_numpy(bits).float().mul_(2).sub_(1).mul_(self._read(f"{weight}.scale"))

    def factors(self, weight: str) -> None:
        """Such a change is not known by factors."""

    def _read(self, name: str) -> Tensor:
        return self.files[name].read(name)


@overload
def read(folder: Path, form: Literal["low_rank"]) -> StoredFactors: ...
@overload
def read(folder: Path, form: str) -> Deltas: ...
def read(folder: Path, form: str) -> Deltas:
    """The deltas that `write` wrote in a form. Raises ExpertError if the files are damaged or not of the form."""
    files = by_name(TensorFile.open(confined(folder, path.name)) for path in sorted(folder.glob("weights-*.safetensors")))
    if not files:
        raise ExpertError(f"{folder} holds no weights-*.safetensors")
    if form != LowRankForm.name:
        return StoredDeltas(files)
    if {name[:-2] + side for name in files for side in (".a", ".b")} != files.keys():
        raise ExpertError(f"{folder} does not hold just factors a and b of modules")
    return StoredFactors(files)


class _Writer:
    """Collects tensors, and writes a file whenever they would be over 64 MB.

    They are copied into one buffer: small ones, each where it was made, would keep freed memory from being used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer, self._used = torch.empty(_FLUSH, dtype=torch.uint8), 0
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
        self._pending[name] = self._buffer[start : self._used].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def flush(self) -> None:
        if self._pending:
            self._count += 1
            path = self._folder / f"weights-{self._count:05}.safetensors"
            assert not path.exists()
            save(self._pending, path)
            self.bytes += path.stat().st_size
            self._pending, self._used = {}, 0


def _encode(deltas: Deltas, weight: str, form: Form) -> tuple[float, int, Encoded]:
    """The energy of one weight's delta, the bytes it was known by, and it in the form."""
    factor = deltas.factors(weight)
    change = deltas.delta(weight) if factor is None else factor
    size = change.nbytes if isinstance(change, Tensor) else change.a.nbytes + change.b.nbytes
    energy = energy_of(change)
    if not math.isfinite(energy):
        raise ExpertError(f"the change of {weight} is NaN or infinite")
    return energy, size, form.encode(weight, change, energy) if energy else Encoded(1.0, {})


def _dense(change: LowRank | Tensor) -> Tensor:
    return change.contiguous() if isinstance(change, Tensor) else change.dense()
