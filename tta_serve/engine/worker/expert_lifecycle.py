"""The life of an expert in a worker: prepared, committed, used, and unloaded."""

from collections.abc import Iterable

from vllm.lora.request import LoRARequest

from adapters.errors import ExpertError
from adapters.library.library import Library
from tta_serve.engine.options import BankOptions, Capacity
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
        self._reader = ExpertReader()
        self._library = options.library
        for name, digest in options.experts:
            self._add(digest, self._read(name, digest))
        model.use([residents.column(digest) for _, digest in options.experts], ())

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
        return digest in self._residents or self._reader.is_done(digest)

    def commit(self, digest: str) -> None:
        """Make an expert that was prepared usable from the next step on.

        Raises:
            ExpertError: As the reading did, and if there is no room.
        """
        if digest not in self._residents:
            self._add(digest, self._reader.take(digest))

    def discard(self, digest: str) -> None:
        """Undo `prepare`."""
        self._reader.forget(digest)

    def unload(self, digest: str, running: Iterable[LoRARequest]) -> bool:
        """Forget an expert, unless a running request uses it. Returns whether it is gone."""
        if digest not in self._residents:
            return True
        if any(digest in self._steps.find_experts(request) for request in running):
            return False
        column = self._residents.remove(digest)
        self._steps.forget_expert(column)
        self._model.remove_expert(digest, column)
        self._remap()
        return True

    def count_used(self) -> Capacity:
        """Return how much of the capacity is taken."""
        return self._residents.count_used()

    def _read(self, name: str, digest: str) -> PlacedExpert:
        """Return this rank's share of an expert of the library.

        Raises:
            ExpertError: The expert does not fit, or is not the one that was meant.
        """
        expert = Library.open(self._library).expert(name)
        if expert.digest != digest:
            raise ExpertError(
                f"expert {name!r} changed in the library while it was being loaded; load it again"
            )
        return self._model.place(expert)

    def _add(self, digest: str, expert: PlacedExpert) -> None:
        column = self._residents.add(digest, expert)
        self._model.add_expert(digest, column, expert)
        self._remap()

    def _remap(self) -> None:
        """Tell the policies that decide inside the pass where experts are."""
        if self._model.inline is not None:
            self._model.inline.table.remap(self._residents.find_column)
