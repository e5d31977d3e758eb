"""What `python -m loadtest http` asks: its sides, and the cells that each of them is asked in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadtest.common.mix_supply import MixChoice, MixSupply
from loadtest.common.workload import numbers_of

if TYPE_CHECKING:
    from adapters.mix import Mix

MANY = 16  # requests at once, and different mixes
ANSWER = 64
"""Tokens of an answer."""
_FIRST = 2  # tokens of an answer where the first is what matters
_TURNS = 16  # most requests of a cell where they take turns, however many the others get
_HALF = 50  # per cent of a's capacity, at which bursts and traces come
_BURSTINESS = 0.25  # gaps whose standard deviation is twice their mean

BURSTS = f"bursts_{_HALF}"
TRACE = "trace"

MixBody = Callable[[int, "Mix"], dict[str, Any]]


@dataclass(frozen=True)
class HttpPlan:
    """How much is asked."""

    rounds: int
    """How often each server is started."""
    firsts: int
    """Requests whose first token is timed, one at a time, each round."""
    alone: int
    """Requests for whole answers, one at a time."""
    batches: int
    """Batches of 16 requests at once."""
    arrivals: int
    """Requests that come by chance, at each share."""
    shares: tuple[int, ...]
    """How fast those come, in per cent of what a answers with 16 at once."""
    policies: tuple[str, ...] = ()
    """The policies that decide, beside the default one."""
    whole: bool = False
    """Whether slow sides are asked for more than their throughput, and mixes also fewer at once."""
    bursts: bool = False
    """Whether requests also come in bursts."""
    unasked: tuple[str, ...] = ()
    """The letters of sides that are asked only where they are named."""
    choice: MixChoice = MixChoice.UNIFORM
    """Which mixes are named."""
    trace: tuple[float, ...] = ()
    """When requests also come, in the mean one in each unit of time; nothing for no trace."""


@dataclass(frozen=True)
class AskedSide:
    """One way of asking a server."""

    title: str
    """What it is, for people."""
    server: str
    """The server that is asked."""
    model: str | None = None
    """The name that it is asked for, None for the server's own."""
    mix_body: MixBody | None = None
    """What asks for a mix, by its number; None where requests name no mix."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """What all its requests say else."""
    policy: str = ""
    """The policy that decides, empty where none does."""
    slow: bool = False
    """Whether all that others are asked would take it too long for a quick run."""
    takes_turns: bool = False
    """Whether requests are answered one after the other, so that mixes do not matter."""


@dataclass(frozen=True)
class Cell:
    """Requests of one kind, whose figures are kept together."""

    name: str
    requests: int
    at_once: int | None
    """Most under way, None for as many as come."""
    mixes: int = MANY
    """Different mixes of them, where they name any."""
    share: int = 0
    """How fast they come, in per cent of a's capacity; 0 for as soon as they may."""
    tokens: int = ANSWER
    """Of each answer."""
    burstiness: float = 1.0
    """The shape of the gamma distribution of the gaps; 1 is a Poisson process."""
    times: tuple[float, ...] = ()
    """When they come, in the mean one in each unit of time; nothing for by chance."""


def _name_adapter(number: int, mix: Mix) -> dict[str, Any]:
    # By the name that `loadtest.sides.stock.write_adapters` gives it.
    return {"model": f"mix-{number}"}


def _name_experts(number: int, mix: Mix) -> dict[str, Any]:
    return {"merge": {"experts": numbers_of(mix)}}


DEFAULT = "inline"  # the demo's default policy
SIDES = {
    "a": AskedSide("vLLM, the base", "vllm"),
    "b": AskedSide("vLLM, pre-merged adapters", "merged", mix_body=_name_adapter, slow=True),
    "c": AskedSide("ours, the base", "ours"),
    "d": AskedSide("ours, mixes in requests", "ours", "smollm2", _name_experts),
    "e": AskedSide("ours, the default policy", "ours", "smollm2", policy=DEFAULT),
    **{
        f"e_{policy}": AskedSide(
            f"ours, by {policy}",
            "ours",
            "smollm2",
            body={"merge": {"policy": policy}},
            policy=policy,
        )
        for policy in ("gate", "twin", "t3-calibrated")
    },
    "f": AskedSide(
        "vLLM, merged in place", "in_place", mix_body=_name_experts, slow=True, takes_turns=True
    ),
    "g": AskedSide("Ray Serve LLM, the base", "ray_direct"),
}


def make_plan(configured: Collection[str], *, quick: bool) -> HttpPlan:
    """Return how much to ask.

    Args:
        configured: The policies that the server has.
        quick: Whether it is to take less than 20 minutes.
    """
    if quick:
        return HttpPlan(
            2, firsts=8, alone=2, batches=2, arrivals=16, shares=(_HALF,), unasked=("g",)
        )
    own = tuple(side.policy for side in SIDES.values() if side.policy not in ("", DEFAULT))
    return HttpPlan(
        5,
        firsts=16,
        alone=4,
        batches=4,
        arrivals=64,
        shares=(25, _HALF, 75, 100),
        policies=tuple(policy for policy in own if policy in configured),
        whole=True,
        bursts=True,
    )


def choose_sides(plan: HttpPlan, only: str) -> dict[str, AskedSide]:
    """Return the sides of a plan, or some of them by their letters.

    Raises:
        ValueError: There is no such side.
    """
    decided = {"", DEFAULT, *plan.policies}
    sides = {key: side for key, side in SIDES.items() if side.policy in decided}
    letters = {key[0] for key in sides}
    named = {letter.strip() for letter in only.split(",")}
    chosen = named if only else letters - set(plan.unasked)
    if unknown := sorted(chosen - letters):
        there = ", ".join(sorted(letters))
        raise ValueError(f"no side is called {unknown[0]!r}; there are {there}")
    return {key: side for key, side in sides.items() if key[0] in chosen}


def group_sides(
    plan: HttpPlan, sides: Mapping[str, AskedSide], r: int
) -> list[dict[str, AskedSide]]:
    """Return the sides of a round in groups whose servers run at the same time.

    Those that are slow have the machine to themselves, and in a quick run the first round alone.
    """
    fast = {key: side for key, side in sides.items() if not side.slow}
    slow = [{key: side} for key, side in sides.items() if side.slow and (plan.whole or r == 0)]
    return [group for group in (fast, *slow) if group]


def make_cells(plan: HttpPlan, side: AskedSide) -> list[Cell]:
    """Return what a side is asked, in this order."""
    if side.slow and not plan.whole:
        return [Cell("many", MANY // 2 if side.takes_turns else MANY, MANY)]
    most = _TURNS if side.takes_turns else MANY * plan.batches
    many = Cell("many", most, MANY)
    cells = [Cell("first", plan.firsts, 1, tokens=_FIRST), Cell("alone", plan.alone, 1), many]
    if plan.whole and side.mix_body and not side.takes_turns:
        for mixes in (1, 4):
            cells.append(Cell(f"many_{mixes}_mixes", most, MANY, mixes))
            cells.append(Cell(f"alone_{mixes}_mixes", plan.alone, 1, mixes))
    arrivals = min(plan.arrivals, most) if side.takes_turns else plan.arrivals
    return cells + _make_open_cells(plan, arrivals)


def _make_open_cells(plan: HttpPlan, arrivals: int) -> list[Cell]:
    """Return the cells whose requests come when they come, whatever is under way."""
    cells = [Cell(f"open_{share}", arrivals, None, share=share) for share in plan.shares]
    if plan.bursts:
        bursts = Cell(BURSTS, arrivals, None, share=_HALF, burstiness=_BURSTINESS)
        cells.append(bursts)
    if plan.trace:
        # Who is asked less gets the first of the same requests, at the same times.
        times = plan.trace[:arrivals]
        cells.append(Cell(TRACE, arrivals, None, share=_HALF, times=times))
    return cells


def make_bodies(side: AskedSide, cell: Cell, mixes: MixSupply) -> list[dict[str, Any]]:
    """Return what each request of a cell says beside the usual."""
    if side.mix_body is None:
        return [dict(side.body)] * cell.requests
    numbers = mixes.number_requests(cell.requests, cell.mixes)
    return [{**side.body, **side.mix_body(i, mixes.mixes[i])} for i in numbers]
