"""Routing inside the pass: a user's turn is read at an early layer, and its mix is decided there.

A slot may start undecided: its row of coefficients is zero, so that its tokens run as the base. In
the step that completes the user's turn, the mean of the turn's states, summed over the steps
before, is scored by the policy's heads, and the slot's row is written for all layers from the
tapped one on, which use it in the same pass. Once decided, it stays.

A step takes four calls:

    begin     before the pass, on the host: which tokens are read into which reader, and which turns
              are due, from where requests stand
    observe   inside the pass, at the tapped layer: add the tokens' states to the readers' sums, and
              decide what is due
    collect   after the pass: start copying what was decided from the device
    reports   the result of `collect`, called while other steps may run: wait for the copies, and
              say what each request's client is to hear

All tensors keep their addresses and shapes, as a captured CUDA graph wants it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.distributed import get_tp_group
from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient, Place
from router.scoring.heads import HeadChoice, choose, should_move
from tta_serve.engine import wire
from tta_serve.engine.wire import InlineDecision, PassReport, ProbeFeatures
from tta_serve.engine.worker.head_table import HEADS, HeadTable, WorkerPolicy
from tta_serve.engine.worker.slots import SlotTable
from tta_serve.engine.worker.step_state import StepState

_REMEMBERED = 4096

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Reports = dict[str, PassReport]


class StepPart(NamedTuple):
    """The tokens of one request in a step."""

    request: str
    """The request's name."""
    adapter: LoRARequest
    """What it runs as."""
    first: int
    """Which of the step's tokens is the part's first."""
    start: int
    """Where that token stands in the request."""
    tokens: int
    """How many tokens the part has."""
    turn: tuple[int, int] | None
    """The user's turn, the tokens [start, end) of the request."""

    @property
    def end(self) -> int:
        """Where the part ends in the request."""
        return self.start + self.tokens


class DueTurn(NamedTuple):
    """A turn that the step completes."""

    part: StepPart
    """The part that completes it."""
    reader: int
    """The row in which its states are summed."""
    undecided: bool
    """Whether it decides the slot of its adapter."""
    policy: WorkerPolicy | None
    """The policy that scores it, None if only the features are wanted."""


@dataclass
class AdapterDecision:
    """What a pass decides for the adapter id of a conversation's first turn."""

    since: int = 0
    """The token from which it is used."""
    unread: bool = False
    """Whether the turn could not be read, so that the mix of the turn before answers, or the
    base."""
    decision: InlineDecision | None = None
    """What was decided, None before it has come from the device."""
    coefficients: dict[str, Coefficient] = field(default_factory=dict)
    """The mix, by expert digest."""

    @property
    def known(self) -> bool:
        """Whether it is known on the host what the adapter runs as."""
        return self.unread or self.decision is not None


class InlineRouting:
    """Reads users' turns in the pass, and decides the mixes of those that are undecided.

    It reads the turns of probes for features, of undecided requests, and of those that ask what a
    policy would decide. Each turn has a reader, a row of the tensors below; reader 0 reads nothing.

    Attributes:
        table: The policies that decide.
        looking: Whether the current step has anything to read.
        pending: Whether the next step may differ though its tokens are of the same adapters.
    """

    def __init__(
        self,
        state: StepState,
        width: int,
        capacity: int,
        max_tokens: int,
        find_column: Callable[[str], int | None],
    ) -> None:
        """Set up the readers.

        Args:
            state: The coefficients that decisions are written to.
            width: d, the features of a token.
            capacity: The most turns that are read at once.
            max_tokens: The most tokens of a step.
            find_column: Gives the column of an expert by its digest, None if it is not there.
        """
        device = state.table.coefficients.device
        columns = state.table.coefficients.shape[2]
        readers = capacity + 1

        self.table = HeadTable(width, columns, device)
        self.looking = state.captured
        self.pending = False

        # What is known on the host.
        self._state = state
        self._find_column = find_column
        self._readers = SlotTable[int | str](capacity)
        self._read: dict[int, int] = {}  # by reader, up to which token
        self._decided: OrderedDict[int, AdapterDecision] = OrderedDict()  # by adapter id
        self._parts: Sequence[StepPart] = ()
        self._due: list[DueTurn] = []

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # What the pass reads: [readers], their own numbers; [max tokens], the reader of each
        # token; [readers], the slot whose row is written, `nowhere` for none; [readers, HEADS],
        # rows of the head table.
        self._all = torch.arange(readers, device=device)
        self._numbers = self._all.clone().unsqueeze(1)
        self._numbers[0] = -1
        self._reader_of = zeros(max_tokens, dtype=torch.long)
        self._slot_of = torch.full((readers,), state.table.nowhere, device=device)
        self._heads_of = zeros(readers, HEADS, dtype=torch.long)

        # What was decided for the turn before: [readers, columns], its mix; [readers], the column
        # of its choice, or one of these.
        self._first, self._base = columns, columns + 1
        self._before = zeros(readers, columns)
        self._choice = torch.full((readers,), self._first, device=device)

        # What the pass writes: [readers, d] and [readers], of the tokens read so far; and, as
        # `router.scoring.heads.HeadChoice` has them, what was decided.
        self._sums = zeros(readers, width)
        self._counts = zeros(readers)
        self._scores = zeros(readers, columns + 1)
        self._units = zeros(readers, columns, dtype=torch.long)
        self._head = zeros(readers, dtype=torch.long)
        self._several = zeros(readers)
        self._kept = zeros(readers, dtype=torch.bool)

    def find_experts(self, adapter: LoRARequest) -> set[str]:
        """Return the digests of the experts that a request uses, or may turn out to use."""
        order = wire.read_order(adapter)
        if order.mix is not None:
            return set(order.mix)
        decided = self._decided.get(adapter.lora_int_id)
        if decided is not None and decided.known:
            return set(decided.coefficients)
        before = set(order.before.mix) if order.before else set()
        if order.policy and order.policy in self.table:
            return before | self.table[order.policy].experts
        return before

    def find_decision(self, adapter: int) -> AdapterDecision | None:
        """Return what was decided for an adapter id, if the turn was completed or given up."""
        return self._decided.get(adapter)

    def begin(self, parts: Sequence[StepPart], slots: SlotTable[int], tokens: int) -> None:
        """Start a step.

        Args:
            parts: The requests' tokens.
            slots: The slot of each adapter.
            tokens: How many tokens the step has.
        """
        # Forget the step before: the readers of turns that it completed are free.
        for due in self._due:
            self._readers.remove(self._key(due.part, due.undecided))
        self._parts = parts
        self._due = []
        self.pending = False

        # Give each turn that is read in this step a reader, and start those that are new.
        reading = [(part, key) for part in parts if (key := self._reads(part)) is not None]
        for key, reader in self._readers.bind(key for _, key in reading):
            part = next(part for part, other in reading if other == key)
            self._start(reader, part)

        # Mark the tokens that are read, and the turns that are due.
        readers = np.zeros(tokens, np.int64)
        for part, key in reading:
            self._mark(part, self._readers.slot(key), readers)

        if reading or self.looking:
            self._load(readers, slots)
        self.pending |= bool(self._due)

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None:
        """Read the step's tokens, and decide what is due.

        Args:
            x: [tokens, d], the inputs of the tapped layer.
            token_slots: [at least tokens], not needed here.
            place: Where the tapped layer sits, not needed here.
        """
        mine = (self._reader_of[: x.shape[0]] == self._numbers).float()
        self._sums += mine @ x.float()
        self._counts += mine.sum(1)
        if self._due or self._state.captured:
            self._decide()

    def collect(self) -> Callable[[], Reports] | None:
        """Return how to get what is to be reported of each request; None if nothing is new.

        Called after the pass. The values come from the device while other steps may run; the call
        of the result waits for them.
        """
        parts = self._parts
        due = self._due
        self._parts = ()
        if not parts:
            return None

        tensors = [
            self._scores,
            self._units,
            self._head,
            self._several,
            self._kept,
            self._sums,
            self._counts,
        ]
        fetched = _fetch(tensors) if due else None
        return lambda: self._reports(parts, due, fetched)

    def _key(self, part: StepPart, undecided: bool) -> int | str:
        """Return by what a turn's reader is known.

        Parallel samples of an undecided request read one turn together.
        """
        return part.adapter.lora_int_id if undecided else part.request

    def _reads(self, part: StepPart) -> int | str | None:
        """Return the key of the reader for what a part has of its turn.

        It is None if the part has nothing that is to be read.
        """
        # Does anybody want to know of the turn?
        order = wire.read_order(part.adapter)
        undecided = order.mix is None and part.adapter.lora_int_id not in self._decided
        scored = order.mix is not None and order.policy
        if part.turn is None or not (undecided or scored or order.probe == "features"):
            return None

        # Has the turn been read up to here? What was in the prefix cache does not pass by.
        key = self._key(part, undecided)
        read = self._read[self._readers.slot(key)] if key in self._readers else part.turn[0]
        if part.start > read or (order.policy is not None and order.policy not in self.table):
            if undecided:
                unread = AdapterDecision(order.used_from, unread=True)
                unread.coefficients = dict(order.before.mix) if order.before else {}
                self._remember(part.adapter.lora_int_id, unread)
            return None

        # Has the part any of it? Its turn may go on in the next step.
        self.pending |= part.end < part.turn[1]
        return key if part.end > read else None

    def _start(self, reader: int, part: StepPart) -> None:
        """Make a reader ready for the turn of a part."""
        assert part.turn is not None
        order = wire.read_order(part.adapter)
        rows = [0] * HEADS if order.policy is None else self.table[order.policy].rows
        self._read[reader] = part.turn[0]
        self._sums[reader] = 0
        self._counts[reader] = 0
        self._heads_of[reader] = torch.tensor(rows)

        # What holds if the topic is unchanged.
        self._before[reader] = 0
        self._choice[reader] = self._first
        if order.before is not None:
            for digest, coefficient in order.before.mix.items():
                assert isinstance(coefficient, float), "heads decide one number an expert"
                self._before[reader, self._column_of(digest)] = coefficient
            chosen = order.before.choice
            self._choice[reader] = self._base if chosen is None else self._column_of(chosen)

    def _column_of(self, expert: str) -> int:
        column = self._find_column(expert)
        assert column is not None, "an expert that a request may use is there"
        return column

    def _mark(self, part: StepPart, reader: int, readers: Numbers) -> None:
        """Let a reader read what it has not read yet of a part's turn."""
        assert part.turn is not None
        read = self._read[reader]
        end = min(part.end, part.turn[1])
        if end <= read:
            return
        readers[part.first + max(read - part.start, 0) : part.first + end - part.start] = reader
        self._read[reader] = end
        if end < part.turn[1]:
            return

        # The turn is complete.
        order = wire.read_order(part.adapter)
        policy = None if order.policy is None else self.table[order.policy]
        self._due.append(DueTurn(part, reader, order.mix is None, policy))
        if order.mix is None:
            since = max(part.start, order.acts_from)
            self._remember(part.adapter.lora_int_id, AdapterDecision(since))

    def _load(self, readers: Numbers, slots: SlotTable[int]) -> None:
        """Hand what the pass needs to the device."""
        n = len(readers)
        self._reader_of[:n].copy_(torch.from_numpy(readers))
        self._reader_of[n:] = 0
        slot_of = torch.full((len(self._slot_of),), self._state.table.nowhere)
        for due in self._due:
            if due.undecided:
                slot_of[due.reader] = slots.slot(due.part.adapter.lora_int_id)
        self._slot_of.copy_(slot_of)
        self.looking = self._state.captured or bool(readers.any())

    def _remember(self, adapter: int, decided: AdapterDecision) -> None:
        self._decided[adapter] = decided
        if len(self._decided) > _REMEMBERED:
            self._decided.popitem(last=False)

    def _decide(self) -> None:
        """Decide what is due.

        A captured graph decides for all readers, and those that are not due write nowhere.
        """
        # Score the mean states by each policy's heads.
        readers = self._all
        if not self._state.captured:
            readers = torch.tensor([due.reader for due in self._due], device=readers.device)
        features = self._sums[readers] / self._counts[readers].clamp_min(1).unsqueeze(1)
        rows = self._heads_of[readers]
        choice = choose([self.table.heads.take(row) for row in rows.unbind(1)], features)
        if get_tp_group().world_size > 1:  # ranks may differ in the last digit
            for values in choice:
                get_tp_group().broadcast(values)

        # Keep what `collect` is to report.
        chosen = rows.gather(1, choice.head.unsqueeze(1))[:, 0]
        kept = self._keeps(readers, chosen, choice)
        results = (*choice, kept)
        places = (self._scores, self._units, self._head, self._several, self._kept)
        for place, values in zip(places, results, strict=True):
            place[readers] = values

        # Write the slots' rows, for the layers that follow.
        numbers = (choice.units * self.table.heads.grid[chosen].unsqueeze(1)).float()
        columns = self.table.columns[chosen]
        coefficients = torch.zeros_like(numbers).scatter_add_(1, columns, numbers)
        on = (choice.units > 0).any(1) | self.table.alone[chosen]
        coefficients += self.table.beside[chosen] * on.unsqueeze(1)
        coefficients = self._before[readers].where(kept.unsqueeze(1), coefficients)
        self._state.table.decide(self._slot_of[readers], coefficients)

    def _keeps(self, readers: Tensor, chosen: Tensor, choice: HeadChoice) -> Tensor:
        """Return whether turns are of the topic of those before them, [readers] bool.

        Args:
            readers: Those of the turns.
            chosen: The head that decided each, a row of the head table.
            choice: What the heads decided.
        """
        before = self._choice[readers].unsqueeze(1)
        is_choice = (
            torch.cat([self.table.columns[chosen] == before, before == self._base], dim=1)
            & choice.scores.isfinite()
        )
        moved = should_move(self.table.heads.take(chosen), choice, is_choice)
        return (before[:, 0] != self._first) & ~moved

    def _reports(
        self,
        parts: Sequence[StepPart],
        due: Sequence[DueTurn],
        fetched: Callable[[], list[Tensor]] | None,
    ) -> Reports:
        """Return what is to be reported of each request of a step."""
        # Of turns that the step completed.
        values = fetched() if fetched else []
        reports = {
            one.part.request: self._report(one, [value[one.reader] for value in values])
            for one in due
        }
        # Of all others whose adapter is decided: parallel samples, of which one alone completed the
        # turn, and requests that were preempted.
        for part in parts:
            decided = self._decided.get(part.adapter.lora_int_id)
            undecided = wire.read_order(part.adapter).mix is None
            if undecided and decided is not None and decided.decision is not None:
                reports[part.request] = decided.decision
        return reports

    def _report(self, due: DueTurn, values: Sequence[Tensor]) -> PassReport:
        """Return what is to be reported of a completed turn, and remember what it decided."""
        scores, units, head, several, kept, total, count = values
        if due.policy is None:
            return ProbeFeatures((total / count).tolist())

        order = wire.read_order(due.part.adapter)
        number = int(head) - HEADS + len(due.policy.heads)
        chosen = due.policy.heads[number]
        names = chosen.names
        decision = InlineDecision(
            head=number,
            scores=scores[: len(names)].tolist(),
            floor=float(scores[-1]),
            units=units[: len(names)].tolist(),
            since=max(due.part.start, order.acts_from),
            kept=bool(kept),
            several=float(several),
        )
        if due.undecided and (decided := self._decided.get(due.part.adapter.lora_int_id)):
            grid = due.policy.rules.grid
            decided.coefficients = {
                name: u * grid for name, u in zip(names, decision.units, strict=True) if u
            }
            if chosen.beside and (decided.coefficients or chosen.alone):
                decided.coefficients[chosen.beside] = 1.0
            if decision.kept and order.before is not None:
                decided.coefficients = dict(order.before.mix)
            decided.decision = decision
        return decision


def _fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start copying tensors to the host. The call of the result waits for the copies."""
    if tensors[0].device.type == "cpu":
        copies = [tensor.clone() for tensor in tensors]
        return lambda: copies

    copies = [
        torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
        for t in tensors
    ]
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[Tensor]:
        done.synchronize()
        return copies

    return wait
