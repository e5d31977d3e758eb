"""Routing inside the pass: users' turns are read where the base passes an early layer, and mixes are decided there.

A slot may start undecided: its row is zero, so that its tokens run as the base. In the step that completes the user's turn
the mean of the turn's states, summed over the steps before, is scored by the policy's heads, and the slot's row is written
for all layers from the tapped one on, which use it in the same pass. Once decided, it stays.

Which tokens are read, and what is due, is known before the pass from where requests stand; what is decided leaves the device
when the pass is over. All tensors keep their addresses and shapes, as a captured CUDA graph wants it.
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

from adapters.coefficient import Place
from router.inline import choose
from tta_serve.engine import wire
from tta_serve.engine.heads import HEADS, HeadTable, Installed
from tta_serve.engine.slots import SlotTable
from tta_serve.engine.step import StepState
from tta_serve.engine.wire import Said

_REMEMBERED = 4096

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Part(NamedTuple):
    """A request's tokens in a step.

    first: which of the step's tokens is the first   start: where that stands in the request   tokens: how many
    turn: the user's, [start, end) in the request
    """

    request: str
    adapter: LoRARequest
    first: int
    start: int
    tokens: int
    turn: tuple[int, int] | None

    @property
    def end(self) -> int:
        return self.start + self.tokens


class Due(NamedTuple):
    """A turn that the step completes. reader: its row   undecided: whether it decides the slot of its adapter
    policy: None if only the features are wanted
    """

    part: Part
    reader: int
    undecided: bool
    policy: Installed | None


@dataclass
class Decided:
    """What a pass decided for an adapter id. since: the token from which it is used

    said: what the server is told of it, None until it is known, empty if the turn could not be read and the base answers
    coefficients: by expert digest
    """

    since: int = 0
    said: Said | None = None
    coefficients: dict[str, float] = field(default_factory=dict)


class Inline:
    """Reads the turns of probes, of undecided requests, and of those that ask what a policy would decide.

    sums: [readers, d], counts: [readers], of the tokens read so far; reader 0 reads nothing
    reader_of: [max tokens]   slot_of: [readers], whose row is written; `nowhere` for none
    heads_of: [readers, HEADS], rows of the head table   scores, units, head: as router.inline.Choice
    """

    def __init__(self, state: StepState, width: int, capacity: int, max_tokens: int) -> None:
        """width: d   capacity: turns that are read at once"""
        device, readers, columns = state.coefficients.device, capacity + 1, state.coefficients.shape[2]
        self._state = state
        self.table = HeadTable(width, columns, device)
        self._readers = SlotTable[int | str](capacity)
        self._read: dict[int, int] = {}  # by reader, up to which token
        self._decided: OrderedDict[int, Decided] = OrderedDict()
        self._parts: Sequence[Part] = ()
        self._due: list[Due] = []
        self._all = torch.arange(readers, device=device)
        self._numbers = self._all.clone().unsqueeze(1)
        self._numbers[0] = -1
        self._reader_of = torch.zeros(max_tokens, dtype=torch.long, device=device)
        self._sums = torch.zeros(readers, width, dtype=torch.float32, device=device)
        self._counts = torch.zeros(readers, dtype=torch.float32, device=device)
        self._slot_of = torch.full((readers,), state.nowhere, device=device)
        self._heads_of = torch.zeros(readers, HEADS, dtype=torch.long, device=device)
        self._scores = torch.zeros(readers, columns + 1, dtype=torch.float32, device=device)
        self._units = torch.zeros(readers, columns, dtype=torch.long, device=device)
        self._head = torch.zeros(readers, dtype=torch.long, device=device)
        self.looking = state.captured
        self.pending = False  # whether the next step may differ though its tokens are of the same adapters

    def experts(self, adapter: LoRARequest) -> set[str]:
        """The digests of the experts that a request may use, or does."""
        wanted = wire.wanted(adapter)
        if wanted.mix is not None:
            return set(wanted.mix)
        known = self._decided.get(adapter.lora_int_id)
        if known is not None and known.said is not None:
            return set(known.coefficients)
        return self.table[wanted.policy].experts if wanted.policy and wanted.policy in self.table else set()

    def decided(self, adapter: int) -> Decided | None:
        """What was decided for an adapter id, if it is known yet."""
        return self._decided.get(adapter)

    def begin(self, parts: Sequence[Part], slots: SlotTable[int], token_slots: Numbers) -> None:
        """Start a step. token_slots: the slot of each token; tokens before the one since which a mix is used lose it."""
        for due in self._due:
            self._readers.remove(self._key(due.part, due.undecided))
        self._parts, self._due, self.pending = parts, [], False
        reading = [(part, key) for part in parts if (key := self._reads(part)) is not None]
        for key, reader in self._readers.bind(key for _, key in reading):
            part = next(part for part, other in reading if other == key)
            self._start(reader, part)
        readers = np.zeros(len(token_slots), np.int64)
        for part, key in reading:
            self._mark(part, self._readers.slot(key), readers)
        for part in parts:
            self._hide(part, token_slots)
        if reading or self.looking:
            self._load(readers, slots)
        self.pending |= bool(self._due)

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None:
        """Read the step's tokens, and decide what is due. x: [tokens, d]"""
        mine = (self._reader_of[: x.shape[0]] == self._numbers).float()
        self._sums += mine @ x.float()
        self._counts += mine.sum(1)
        if self._due or self._state.captured:
            self._decide()

    def collect(self) -> Callable[[], dict[str, Said]] | None:
        """After the pass: how to get what the server is to hear, by request; None if nothing is new.

        The values come from the device while other steps may run; the call waits for them.
        """
        parts, due = self._parts, self._due
        self._parts = ()
        if not parts:
            return None
        arrived = _fetched([self._scores, self._units, self._head, self._sums, self._counts]) if due else None
        return lambda: self._said(parts, due, arrived)

    def _key(self, part: Part, undecided: bool) -> int | str:
        """Parallel samples of an undecided request read one turn together."""
        return part.adapter.lora_int_id if undecided else part.request

    def _reads(self, part: Part) -> int | str | None:
        """The key of the reader for what a part has of its turn, None if it has nothing that is to be read."""
        wanted = wire.wanted(part.adapter)
        undecided = wanted.mix is None and part.adapter.lora_int_id not in self._decided
        asks = undecided or (wanted.mix is not None and wanted.policy) or wanted.probe == "features"
        if not asks or part.turn is None:
            return None
        key = self._key(part, undecided)
        read = self._read[self._readers.slot(key)] if key in self._readers else part.turn[0]
        if part.start > read or (wanted.policy is not None and wanted.policy not in self.table):
            if undecided:
                self._remember(part.adapter.lora_int_id, Decided(said={}))
            return None
        self.pending |= part.end < part.turn[1]
        return key if part.end > read else None

    def _start(self, reader: int, part: Part) -> None:
        assert part.turn is not None
        policy = wire.wanted(part.adapter).policy
        self._read[reader] = part.turn[0]
        self._sums[reader] = 0
        self._counts[reader] = 0
        self._heads_of[reader] = torch.tensor([0] * HEADS if policy is None else self.table[policy].rows)

    def _mark(self, part: Part, reader: int, readers: Numbers) -> None:
        """Let a reader read what it has not read yet of a part's turn."""
        assert part.turn is not None
        read, end = self._read[reader], min(part.end, part.turn[1])
        if end <= read:
            return
        readers[part.first + max(read - part.start, 0) : part.first + end - part.start] = reader
        self._read[reader] = end
        if end < part.turn[1]:
            return
        wanted = wire.wanted(part.adapter)
        policy = None if wanted.policy is None else self.table[wanted.policy]
        self._due.append(Due(part, reader, wanted.mix is None, policy))
        if wanted.mix is None:
            self._remember(part.adapter.lora_int_id, Decided(part.start))

    def _hide(self, part: Part, token_slots: Numbers) -> None:
        wanted = wire.wanted(part.adapter)
        since = wanted.since
        if wanted.mix is None and (known := self._decided.get(part.adapter.lora_int_id)):
            since = known.since
        token_slots[part.first : part.first + min(max(since - part.start, 0), part.tokens)] = 0
        self.pending |= part.end < since

    def _load(self, readers: Numbers, slots: SlotTable[int]) -> None:
        """Hand what the pass needs to the device."""
        n = len(readers)
        self._reader_of[:n].copy_(torch.from_numpy(readers))
        self._reader_of[n:] = 0
        slot_of = torch.full((len(self._slot_of),), self._state.nowhere)
        for due in self._due:
            if due.undecided:
                slot_of[due.reader] = slots.slot(due.part.adapter.lora_int_id)
        self._slot_of.copy_(slot_of)
        self.looking = self._state.captured or bool(readers.any())

    def _remember(self, adapter: int, decided: Decided) -> None:
        self._decided[adapter] = decided
        if len(self._decided) > _REMEMBERED:
            self._decided.popitem(last=False)

    def _decide(self) -> None:
        """Of what is due; a captured graph decides of all readers, and those that are not due write nowhere."""
        readers = self._all
        if not self._state.captured:
            readers = torch.tensor([due.reader for due in self._due], device=readers.device)
        features = self._sums[readers] / self._counts[readers].clamp_min(1).unsqueeze(1)
        rows = self._heads_of[readers]
        choice = choose([self.table.heads.at(row) for row in rows.unbind(1)], features)
        if get_tp_group().world_size > 1:  # ranks may differ in the last digit
            for values in choice:
                get_tp_group().broadcast(values)
        for kept, values in zip((self._scores, self._units, self._head), choice, strict=True):
            kept[readers] = values
        made = rows.gather(1, choice.head.unsqueeze(1))[:, 0]
        numbers = (choice.units * self.table.heads.grid[made].unsqueeze(1)).float()
        coefficients = torch.zeros_like(numbers).scatter_add_(1, self.table.columns[made], numbers)
        self._state.decide(self._slot_of[readers], coefficients)

    def _said(self, parts: Sequence[Part], due: Sequence[Due], arrived: Callable[[], list[Tensor]] | None) -> dict[str, Said]:
        values = arrived() if arrived else []
        said = {one.part.request: self._told(one, [value[one.reader] for value in values]) for one in due}
        for part in parts:
            known = self._decided.get(part.adapter.lora_int_id)
            if wire.wanted(part.adapter).mix is None and known is not None and known.said:
                said[part.request] = known.said
        return said

    def _told(self, due: Due, values: Sequence[Tensor]) -> Said:
        scores, units, head, total, count = values
        if due.policy is None:
            return {"features": (total / count).tolist()}
        number = int(head) - HEADS + len(due.policy.heads)
        names = due.policy.heads[number].names
        found: Said = {
            "head": number,
            "scores": scores[: len(names)].tolist(),
            "floor": float(scores[-1]),
            "since": due.part.start,
        }
        found["units"] = units[: len(names)].tolist()
        if due.undecided and (known := self._decided.get(due.part.adapter.lora_int_id)):
            grid = due.policy.rules.grid
            known.coefficients = {name: u * grid for name, u in zip(names, found["units"], strict=True) if u}
            known.said = found
        return found


def _fetched(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Copies on the host. The call waits for them."""
    if tensors[0].device.type == "cpu":
        copies = [tensor.clone() for tensor in tensors]
        return lambda: copies
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    done = torch.cuda.Event()
    done.record()

    def waited() -> list[Tensor]:
        done.synchronize()
        return copies

    return waited
