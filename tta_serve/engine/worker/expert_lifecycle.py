"""The life of an expert in a worker: prepared, committed, used, and unloaded."""

from collections.abc import Iterable

from vllm.lora.request import LoRARequest

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.library.integrity import SealedDeltas
from adapters.library.library import Library
from tta_serve.engine.options import BankOptions, Capacity
from tta_serve.engine.worker.dense.delta_layout import PlacedDeltas
from tta_serve.engine.worker.loaded_model import LoadedModel
from tta_serve.engine.worker.placed_expert import PlacedExpert
from tta_serve.engine.worker.residents import ExpertReader, Residents
from tta_serve.engine.worker.step_planner import StepPlanner


class ExpertLifecycle:
    """Loads and unloads the experts of a worker.

    Experts come and go between steps; whoever calls these methods keeps requests away from experts
    that are not there.
    """

    def __init__(
        self,
        model: LoadedModel,
        steps: StepPlanner,
        residents: Residents,
        options: BankOptions,
    ) -> None:
        """Load the experts that the engine starts with.

        Args:
            model: The model that uses them.
            steps: What plans the model's steps.
            residents: Where those that are ready are registered.
            options: The library, and which of its experts to start with.

        Raises:
            ExpertError: An expert does not fit the model or the capacity.
        """
        self._model = model
        self._steps = steps
        self._residents = residents
        self._reader = ExpertReader[PlacedExpert | PlacedDeltas]()
        self._library = options.library
        for name, digest in options.experts:
            self._add(digest, self._read(name, digest))
        columns = [residents.find_column(digest) for _, digest in options.experts]
        model.use([column for column in columns if column is not None], ())

    def prepare(self, name: str, digest: str) -> None:
        """Begin to read an expert of the library, beside the running steps.

        Raises:
            ExpertError: The engine can have no other experts.
        """
        if self._model.state.captured:
            raise ExpertError(
                "this engine captured its CUDA graphs with the experts it has; start with"
                " enforce_eager to load others"
            )
        self._reader.start(digest, lambda: self._read(name, digest))

    def is_prepared(self, digest: str) -> bool:
        """Whether `commit` would not wait."""
        return self._is_there(digest) or self._reader.is_done(digest)

    def commit(self, digest: str) -> None:
        """Make an expert that was prepared usable from the next step on.

        Raises:
            ExpertError: As the reading did, and if there is no room.
        """
        if not self._is_there(digest):
            self._add(digest, self._reader.take(digest))

    def discard(self, digest: str) -> None:
        """Undo `prepare`."""
        self._reader.forget(digest)

    def unload(self, digest: str, running: Iterable[LoRARequest]) -> bool:
        """Forget an expert, unless a running request uses it. Returns whether it is gone."""
        if not self._is_there(digest):
            return True
        if any(digest in self._steps.find_experts(request) for request in running):
            return False
        if self._model.dense is not None and digest in self._model.dense:
            self._model.dense.remove(digest)
            return True
        column = self._residents.remove(digest)
        self._steps.forget_expert(column)
        self._model.remove_expert(digest, column)
        self._remap()
        return True

    def count_used(self) -> Capacity:
        """Return how much of the capacity is taken."""
        return self._residents.count_used()

    def _is_there(self, digest: str) -> bool:
        dense = self._model.dense
        return digest in self._residents or (dense is not None and digest in dense)

    def _read(self, name: str, digest: str) -> PlacedExpert | PlacedDeltas:
        """Return this rank's share of an expert of the library.

        Raises:
            ExpertError: The expert does not fit, or is not the one that was meant.
        """
        library = Library.open(self._library)
        form = library.form(name)
        if form == "low_rank":
            expert = library.expert(name)
            _check_digest(name, expert.digest, digest)
            return self._model.place(expert)

        deltas = library.deltas(name)
        _check_digest(name, deltas.digest, digest)
        if form == "dense":
            return self._place_dense(name, deltas)
        assert isinstance(deltas, SealedDeltas)
        return self._model.place_one_bit(name, deltas, library.manifest(name).report.unserved)

    def _place_dense(self, name: str, deltas: Deltas) -> PlacedDeltas:
        if self._model.dense is None:
            raise ExpertError(
                f"expert {name!r} is dense, and this engine serves none; start the server with it,"
                f" or with library.dense in its config; or make factors: tta experts compress"
            )
        return self._model.dense.place(name, deltas)

    def _add(self, digest: str, expert: PlacedExpert | PlacedDeltas) -> None:
        if isinstance(expert, PlacedDeltas):
            assert self._model.dense is not None
            self._model.dense.add(digest, expert)
            return
        column = self._residents.add(digest, expert)
        self._model.add_expert(digest, column, expert)
        self._remap()

    def _remap(self) -> None:
        """Tell the policies that decide inside the pass where experts are."""
        if self._model.inline is not None:
            self._model.inline.table.remap(self._residents.find_column)


def _check_digest(name: str, found: str, wanted: str) -> None:
    """Raise ExpertError if an expert is not the one that was meant."""
    if found != wanted:
        raise ExpertError(
            f"expert {name!r} changed in the library while it was being loaded; load it again"
        )
