"""vLLM's scheduler, whose every step runs requests of one dense mix, since the weights are one mix.

The requests of other mixes are hidden from vLLM's own scheduling meanwhile. They keep their cached
keys and values: to the workers they are requests that a step leaves out.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from tta_serve.engine.options import BankOptions
from tta_serve.engine.wire import DenseKey, read_order
from tta_serve.engine.worker.dense.turn_taking import TurnTaking

SWITCH = "tta_switch_s"
"""The attribute of a step's output that says what its switch took."""


class _Hidden(NamedTuple):
    """The requests that a step leaves out."""

    running: list[Request]
    waiting: list[Request]
    skipped: list[Request]


class _Turns(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, with turns."""

    running: list[Request]
    waiting: Any
    skipped_waiting: Any

    def __init__(self, vllm_config: Any, *args: Any, **named: Any) -> None:
        options = BankOptions.read(vllm_config.additional_config)
        assert options is not None
        assert options.dense is not None
        super().__init__(vllm_config, *args, **named)
        self._turns = TurnTaking[DenseKey](options.dense.max_wait_s)
        self._live: dict[DenseKey, int] = {}  # how many requests there are of each mix

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            key = find_key(request)
            self._live[key] = self._live.get(key, 0) + 1
        super().add_request(request)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        key = find_key(request)
        self._live[key] -= 1
        if not self._live[key]:
            del self._live[key]

    def schedule(self, *args: Any, **named: Any) -> SchedulerOutput:
        # Whose turn is it?
        ready = self._find_ready()
        key = self._turns.choose(ready, time.monotonic())
        if len(self._live) < 2:
            return super().schedule(*args, **named)

        # Let vLLM schedule as if there were no others.
        hidden = self._hide(key)
        try:
            output = super().schedule(*args, **named)
            shown = [*self.waiting, *self.skipped_waiting]
        finally:
            self._show(hidden)
        if not output.num_scheduled_tokens and len(ready) > 1:
            self._make_way(hidden, shown)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        seconds = getattr(model_runner_output, SWITCH, None)
        if seconds is not None:
            self._turns.note_switch(seconds)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _find_ready(self) -> set[DenseKey]:
        """Return the mixes of the requests that could run now."""
        if len(self._live) < 2:
            return set(self._live)
        waiting = (r for queue in (self.waiting, self.skipped_waiting) for r in queue)
        return {
            *map(find_key, self.running),
            *(find_key(r) for r in waiting if self._is_ready(r)),
        }

    def _is_ready(self, request: Request) -> bool:
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            wanted = request.structured_output_request
            return wanted is not None and wanted.grammar is not None
        return bool(request.status != RequestStatus.WAITING_FOR_STREAMING_REQ)

    def _hide(self, key: DenseKey | None) -> _Hidden:
        """Take away the requests of other mixes."""
        hidden = _Hidden([], [], [])
        mine: list[Request] = []
        for request in self.running:
            (mine if find_key(request) == key else hidden.running).append(request)
        self.running = mine
        self.waiting = self._sift(self.waiting, key, hidden.waiting)
        self.skipped_waiting = self._sift(self.skipped_waiting, key, hidden.skipped)
        return hidden

    def _sift(self, queue: Any, key: DenseKey | None, others: list[Request]) -> Any:
        mine: list[Request] = []
        for request in queue:
            (mine if find_key(request) == key else others).append(request)
        return self._make_queue(mine) if others else queue

    def _show(self, hidden: _Hidden) -> None:
        """Put them back."""
        self.running = [*hidden.running, *self.running]
        if hidden.waiting:
            self.waiting = self._make_queue([*self.waiting, *hidden.waiting])
        if hidden.skipped:
            self.skipped_waiting = self._make_queue([*self.skipped_waiting, *hidden.skipped])

    def _make_queue(self, requests: Iterable[Request]) -> Any:
        queue = create_request_queue(self.policy)
        for request in requests:
            queue.add_request(request)
        return queue

    def _make_way(self, hidden: _Hidden, shown: list[Request]) -> None:
        """Let another mix have its turn, or a memory that younger requests of others hold be freed.

        As in vLLM, requests wait for memory that older ones hold.
        """
        starved = [
            request.arrival_time
            for request in shown
            if request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            and not request.num_stale_output_tokens
        ]
        youngest = max(hidden.running, key=lambda r: r.arrival_time, default=None)
        if youngest is None or not starved or youngest.arrival_time <= min(starved):
            self._turns.pass_on()
            return
        self.running.remove(youngest)
        self._preempt_request(
            youngest, time.monotonic(), drop_stale_output=self.requires_kv_delivery
        )


class _AsyncTurns(_Turns, AsyncScheduler):  # type: ignore[misc]
    """The same of the one that schedules a step while the one before it runs."""


class DenseScheduler:
    """Makes the scheduler that an engine's configuration asks for, with turns."""

    def __new__(cls, vllm_config: Any, *args: Any, **named: Any) -> Any:
        """Return a scheduler.

        Args:
            vllm_config: vLLM's configuration.
            args: The other arguments of vLLM's schedulers.
            named: Those that have names.
        """
        chosen = _AsyncTurns if vllm_config.scheduler_config.async_scheduling else _Turns
        return chosen(vllm_config, *args, **named)


def find_key(request: Request) -> DenseKey:
    """Return the dense mix that a request needs in the weights."""
    adapter = request.lora_request
    return () if adapter is None else read_order(adapter).dense
