"""The dense experts that a worker keeps, and which mix of them is in the weights."""

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.coefficient import Place, spread
from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.library.integrity import SealedDeltas
from tta_serve.engine.options import DenseOptions
from tta_serve.engine.wire import DenseKey
from tta_serve.engine.worker.dense.delta_layout import DeltaLayout, Orders, PlacedDeltas
from tta_serve.engine.worker.dense.mix_writer import MixedWeight, MixWriter
from tta_serve.engine.worker.dense.writable_weights import WritableWeight, find_writable

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Folded:
    """A low-rank mix that is to be in the weights."""

    mix: Hashable
    """What tells it from others."""
    weights: frozenset[str] = field(compare=False)
    """The names of the weights that it changes."""
    make: Callable[[str], Tensor] = field(compare=False)
    """Returns what is added to one of them, as the weight's loader would fill it."""


class DenseWeights:
    """Merges dense experts into the weights of a model: W = W0 + sum_k c_k D_k.

    What an expert changes is written from a copy of the base's own values, never by adding and
    subtracting, so that the base comes back bit for bit. A write that fails leaves the weights as
    unknown, and the next one writes all of them.

    Attributes:
        key: The mix that is in the weights, None if that is not known.
        folded: The low-rank mix that is in them too, None if there is none.
        switches: How many switches there have been.
        bytes_s: How many bytes of weights the last one wrote a second, 0 before the first.
    """

    def __init__(self, model: nn.Module, device: torch.device, options: DenseOptions) -> None:
        """Start with the base, and no experts.

        Args:
            model: vLLM's model, whose layers are as vLLM has loaded them.
            device: Where its weights are.
            options: How experts are kept.
        """
        self._options = options
        self._home = torch.device("cpu") if options.device == "host" else device
        weights = find_writable(model)
        self._weights = {w.name: w for w in weights.values() if isinstance(w, WritableWeight)}
        self._layout = DeltaLayout(model, weights)
        self._writer = MixWriter(device)
        self._clean: dict[str, Tensor] = {}
        self._experts: dict[str, PlacedDeltas] = {}
        self._written: set[str] = set()  # the weights that are not the base's
        self.key: DenseKey | None = ()
        self.folded: Folded | None = None
        self.switches = 0
        self.bytes_s = 0.0
        self._switch_s: float | None = None

    # Experts come and go

    def place(self, name: str, deltas: Deltas) -> PlacedDeltas:
        """Return this rank's share of an expert, beside the running steps.

        Raises:
            ExpertError: The expert changes something that cannot be written.
        """
        placed = self._layout.place(name, deltas, self._find_dtype(deltas))
        return placed._replace(
            values={key: values.to(self._home) for key, values in placed.values.items()}
        )

    def add(self, digest: str, expert: PlacedDeltas) -> None:
        """Keep an expert, and a copy of what it changes.

        Raises:
            ExpertError: It goes beyond the budget.
        """
        new = [self._weights[name] for name in expert.values if name not in self._clean]
        more = expert.nbytes + sum(weight.values.nbytes for weight in new)
        if self.nbytes + more > self._options.bytes:
            raise ExpertError(
                f"expert {expert.name!r}: no room: {self.nbytes} bytes of dense experts are taken,"
                f" this needs {more} more, the budget is {self._options.bytes}; unload one or raise"
                " dense.bytes"
            )
        self._keep(new)
        self._experts[digest] = expert

    def remove(self, digest: str) -> None:
        """Forget an expert, and the copies that no other one needs."""
        self.use(())
        del self._experts[digest]
        touched = {name for expert in self._experts.values() for name in expert.values}
        for name in self._clean.keys() - touched:
            del self._clean[name]

    def __contains__(self, digest: str) -> bool:
        return digest in self._experts

    @property
    def nbytes(self) -> int:
        """The bytes of all deltas and copies."""
        copies = sum(clean.nbytes for clean in self._clean.values())
        return copies + sum(expert.nbytes for expert in self._experts.values())

    def _find_dtype(self, deltas: Deltas) -> Callable[[str], torch.dtype]:
        wanted = self._options.dtype
        if wanted != "stored":
            return lambda _: _DTYPES[wanted]
        return deltas.dtype_of if isinstance(deltas, SealedDeltas) else lambda _: torch.float32

    # Mixes come and go

    @torch.inference_mode()
    def use(self, key: DenseKey, folded: Folded | None = None) -> bool:
        """Make the weights those of a mix. Returns whether they were others before.

        Args:
            key: The mix, of experts that are kept.
            folded: A low-rank mix that they hold too, of weights that `keep_clean` has seen.
        """
        if key == self.key and folded == self.folded:
            return False
        began = time.perf_counter()
        mixed = {name for digest, _ in key for name in self._experts[digest].values}
        of_fold = folded.weights if folded else frozenset[str]()
        mixed |= of_fold
        stale = set(self._clean) if self.key is None else self._written
        self._keep(self._weights[name] for name in mixed - self._clean.keys())
        orders: Orders = {}
        self.key = None
        self._tell_heads(mixed | stale)
        plain = sorted((mixed | stale) - of_fold)
        self._writer.write([self._mix(name, key) for name in plain])
        if folded:
            for name in sorted(of_fold):
                weight = self._mix(name, key)
                weight.parts.append((1.0, self._layout.reorder(name, folded.make(name), orders)))
                self._writer.write([weight])
        self._tell_heads(mixed)
        self.key = key
        self.folded = folded
        self._written = mixed
        self._switch_s = time.perf_counter() - began
        self.switches += 1
        self.bytes_s = self.count_bytes(mixed | stale) / self._switch_s
        return True

    def _tell_heads(self, written: Collection[str]) -> None:
        """Tell output heads whether their weights are the base's, which all but some are."""
        for weight in self._weights.values():
            for head in weight.heads:
                head.is_clean = weight.name not in written

    def count_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of weights, of those that can be written."""
        return sum(self._weights[name].values.nbytes for name in names if name in self._weights)

    def count_moved(self, key: DenseKey) -> int:
        """Return the bytes that must be read and written to put a mix into the weights.

        These are clean copies, deltas, and the weights themselves.
        """
        deltas = [self._experts[digest] for digest, _ in key]
        names = {name for delta in deltas for name in delta.values}
        return 2 * self.count_bytes(names) + sum(delta.nbytes for delta in deltas)

    def keep_clean(self, names: Collection[str]) -> bool:
        """Keep copies of weights, as long as experts are. Returns whether there is room for them.

        Args:
            names: The weights; if one of them cannot be written, there is no room.
        """
        if not all(name in self._weights for name in names):
            return False
        new = [self._weights[name] for name in names if name not in self._clean]
        if self.nbytes + sum(weight.values.nbytes for weight in new) > self._options.bytes:
            return False
        self._keep(new)
        return True

    def _keep(self, new: Iterable[WritableWeight]) -> None:
        """Copy weights that nothing has touched, so that they are the base's."""
        for weight in new:
            self._clean[weight.name] = weight.values.to(self._home, copy=True)

    def _mix(self, name: str, key: DenseKey) -> MixedWeight:
        """Return a weight and what is to be written over it."""
        parts = [*self._find_parts(name, key)]
        return MixedWeight(self._weights[name].values, self._clean[name], parts)

    def _find_parts(self, name: str, key: DenseKey) -> Iterator[tuple[float, Tensor]]:
        """Return what experts add to a weight, with their coefficients there."""
        place: Sequence[Place] = [self._weights[name].place]
        for digest, coefficient in key:
            delta = self._experts[digest].values.get(name)
            (number,) = spread(coefficient, place)
            if delta is not None and number:
                yield number, delta

    def take_switch(self) -> float | None:
        """Return the seconds of the last switch, None if it was asked for before."""
        seconds, self._switch_s = self._switch_s, None
        return seconds

    def values(self) -> Mapping[str, Tensor]:
        """Return the values of all weights that can be written, as the model reads them."""
        return {name: weight.values for name, weight in self._weights.items()}
